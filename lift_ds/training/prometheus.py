"""A run's newest numbers as a text file that node_exporter's textfile collector hands to Prometheus.

The file is replaced whole at every line of `metrics.jsonl`. Each number has the run's folder as its label, so that
several runs on a machine have files of their own.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .timing import GIB

Value = float | dict[str, float] | None  # a dictionary has a value for each value of the metric's label


@dataclass(frozen=True)
class Metric:
    """One number, or one for each value of a label.

    Args:
        name: Without the prefix `lift_ds_`; with the unit, and `_total` for a counter.
        text: What it is.
        kind: Of the records of `metrics.jsonl` which have it.
        value: Takes it from a record; `None` where it is not known.
        label: What the keys of its values are.
    """

    name: str
    text: str
    kind: str
    value: Callable[[dict[str, Any]], Value]
    label: str | None = None

    @property
    def type(self) -> str:
        """As Prometheus calls it."""
        return "counter" if self.name.endswith("_total") else "gauge"


def _key(name: str) -> Callable[[dict[str, Any]], Value]:
    return lambda record: record[name]


def _parts(record: dict[str, Any]) -> Value:
    return {part: record[f"{part}_seconds"] for part in record["slowest_seconds"]}


METRICS = (
    Metric("steps_total", "Optimizer steps taken.", "step", _key("step")),
    Metric("step_timestamp_seconds", "When the last recorded step ended.", "step", _key("time")),
    Metric("step_seconds", "Seconds of the last recorded step.", "step", _key("seconds")),
    Metric("part_seconds", "Seconds of its parts, means over the ranks.", "step", _parts, "part"),
    Metric("gather_seconds", "Seconds in which its passes waited for weights.", "step", _key("gather_seconds")),
    Metric("loss", "Loss of the last recorded step.", "step", _key("loss")),
    Metric("component_share", "Share of its documents by component.", "step", _key("component_share"), "component"),
    Metric("gradient_norm", "Its gradient norm before clipping.", "step", _key("grad_norm")),
    Metric("learning_rate", "Its learning rate.", "step", _key("lr")),
    Metric("tokens_per_second", "Its tokens over its seconds.", "step", _key("tokens_per_second")),
    Metric("model_flops_utilization_ratio", "Share of the devices' rate that it used.", "step", _key("mfu")),
    Metric(
        "peak_memory_bytes",
        "Most memory so far on the rank with most.",
        "step",
        lambda record: record["peak_memory_gib"] * GIB,
    ),
    Metric("slowest_rank", "The rank with most seconds of its own.", "step", lambda r: r["slowest_rank"]["rank"]),
    Metric(
        "slowest_rank_behind_seconds",
        "How many more those are than the mean over the ranks.",
        "step",
        lambda record: record["slowest_rank"]["behind_seconds"],
    ),
    Metric(
        "bad_steps_total",
        "Steps since the start that were left out: loss or gradient not finite.",
        "step",
        _key("num_bad_steps"),
    ),
    Metric(
        "left_out_steps_total",
        "Steps since the start that were left out: gradient above optim.skip_above.",
        "step",
        _key("num_left_out_steps"),
    ),
    Metric("skipped_rows", "Rows that the last recorded step left out as too long.", "step", _key("num_skipped")),
    Metric("bad_rows", "Rows that it left out as bad.", "step", _key("num_bad_rows")),
    Metric("heldout_loss", "The last held-out loss.", "heldout", _key("mean")),
    Metric("solve_rate_ratio", "Share of the held-out items last solved.", "solve", _key("solve_rate")),
    Metric("checkpoint_timestamp_seconds", "When the last checkpoint was there.", "checkpoint", _key("time")),
    Metric("checkpoint_seconds", "How long it took.", "checkpoint", _key("seconds")),
    Metric("checkpoint_stall_seconds", "How long training stood still for it.", "checkpoint", _key("stall_seconds")),
    Metric("ended", "1 once the run has ended, by the way it did.", "end", lambda r: {r["reason"]: 1}, "reason"),
)


@dataclass
class PrometheusFile:
    """The file of one run.

    Args:
        path: Where it is.
        run: The run's folder, the label of every number.
        say: Tells a person.
    """

    path: Path
    run: str
    say: Callable[[str], None]
    values: dict[str, Value] = field(default_factory=dict, init=False)
    is_failing: bool = field(default=False, init=False)

    def take(self, record: dict[str, Any]) -> None:
        """Takes a line of `metrics.jsonl` and writes the file; a file that cannot be written is said, once."""
        self.values |= {each.name: each.value(record) for each in METRICS if each.kind == record["kind"]}
        written = self.path.with_name(f".{self.path.name}.{os.getpid()}")  # the collector reads *.prom alone
        try:
            written.write_text(self.text(), encoding="utf-8")
            written.chmod(0o644)  # another user's node_exporter reads it
            os.replace(written, self.path)
        except OSError as error:  # training goes on: the same numbers are in metrics.jsonl
            with suppress(OSError):
                written.unlink(missing_ok=True)
            if not self.is_failing:
                self.say(f"{self.path}: cannot be written: {error.strerror}; Prometheus does not see this run")
        else:
            self.is_failing = False
            return
        self.is_failing = True

    def text(self) -> str:
        """What is known so far, as Prometheus reads it."""
        lines = []
        for each in METRICS:
            value = self.values.get(each.name)
            if value is None:
                continue
            name = f"lift_ds_{each.name}"
            lines += [f"# HELP {name} {each.text}", f"# TYPE {name} {each.type}"]
            labels = {"run": self.run}
            if isinstance(value, dict):
                lines += [f"{name}{_braced(labels | {str(each.label): key})} {part}" for key, part in value.items()]
            else:
                lines.append(f"{name}{_braced(labels)} {value}")
        return "".join(f"{line}\n" for line in lines)


def _braced(labels: dict[str, str]) -> str:
    escaped = {
        name: value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n") for name, value in labels.items()
    }
    return "{" + ",".join(f'{name}="{value}"' for name, value in escaped.items()) + "}"
