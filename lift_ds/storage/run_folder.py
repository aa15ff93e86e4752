"""A run as its folder tells it, for everyone who looks at it from outside: while it trains, and when it is over.

    run.json                    its settings, see `run_record`
    metrics.jsonl               a line for each step, measurement, checkpoint and event, of these kinds:
        warm_up step heldout solve    at their step
        checkpoint                    one was written, in so many `seconds`; later steps may have come before
        no_checkpoint                 a `problem` prevented one, and the run went on
        resume                        a start that goes on from a checkpoint; `checkpoint` is its folder
        end                           a start that ended by itself; `reason` says how
    log.txt                     what was said
    supervise.jsonl             starts and ends, where `launchers/supervise.py` keeps the run going
    checkpoints/                whole checkpoints; the pointers `latest` and `best`

It needs neither torch nor a machine that trains. A run that is followed is read from where the last look ended.
"""

from __future__ import annotations

import gc
import json
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .appending import Place, read_added
from .manifest import BEST, LATEST, MANIFEST, checkpoints_in, read_pointer
from .run_record import RUN_FILE, read_run

METRICS_FILE, LOG_FILE, SUPERVISE_FILE = "metrics.jsonl", "log.txt", "supervise.jsonl"
CHECKPOINTS = "checkpoints"
LINES_AT_ONCE = 1000
DONE, STOPPED, FAILED = "done", "stopped", "failed"  # reasons of an end
Record = dict[str, Any]


@dataclass(frozen=True)
class RunFolder:
    """What was found in a run's folder at one moment; `read_run_folder` makes it, `read_on` brings it up to date.

    Args:
        folder: Where it is.
        settings: `run.json`: `run` (the run config), `deepspeed`, `world_size`.
        history: Every readable line of `metrics.jsonl`, in the order in which it was written.
        records: The lines that count: without those of steps that a resume went back behind.
        log: Lines of `log.txt`, each with its time of day.
        supervised: Lines of `supervise.jsonl`.
        checkpoints: Folders of checkpoints, oldest first; whether they are whole was not looked at.
        latest: Name of the newest whole checkpoint, as the run left it.
        best: Name of the best one.
        num_unreadable: Whole lines of the files that are none of theirs, as kills and power cuts leave them.
        places: How far each file was read.
    """

    folder: Path
    settings: dict[str, Any]
    history: tuple[Record, ...] = ()
    records: tuple[Record, ...] = ()
    log: tuple[str, ...] = ()
    supervised: tuple[Record, ...] = ()
    checkpoints: tuple[Path, ...] = ()
    latest: str | None = None
    best: str | None = None
    num_unreadable: int = 0
    places: dict[str, Place] = field(default_factory=dict)

    @property
    def run(self) -> dict[str, Any]:
        """The run config; runs of older versions have fewer keys."""
        return self.settings["run"]

    @property
    def half_lines(self) -> list[str]:
        """Files whose last line does not end: it is being written, or a kill cut it short. It is not counted."""
        return [name for name, place in self.places.items() if place.num_half]

    @property
    def step(self) -> int:
        """The last step that counts; 0 before the first."""
        return next((record["step"] for record in reversed(self.records) if record["kind"] == "step"), 0)

    @property
    def last_time(self) -> float | None:
        """When the last line of the metrics was written, in seconds since 1970; `None` without any."""
        return self.history[-1]["time"] if self.history else None

    @property
    def end(self) -> str | None:
        """How the run ended: `done`, `stopped` or `failed`; `None` where it did not say so.

        It trains then, or was killed. Runs of versions that wrote no such line are done once they have an export.
        """
        if self.history and self.history[-1]["kind"] == "end":
            return str(self.history[-1]["reason"])
        knows_ends = any(record["kind"] in ("end", "checkpoint") for record in self.history)
        is_done = self.step >= self.run["optim"]["steps"] and (self.folder / "export").is_dir()
        return DONE if is_done and not knows_ends else None

    def of_kind(self, kind: str) -> list[Record]:
        """The lines of one kind that count."""
        return [record for record in self.records if record["kind"] == kind]

    @property
    def events(self) -> list[Event]:
        """What happened besides steps and measurements, by time."""
        return sorted(
            [event for record in self.history if (event := _event_of(record))]
            + [event for line in self.supervised if (event := _supervised_event(line))],
            key=lambda event: event.time,
        )


@dataclass(frozen=True)
class Event:
    """Something that happened in a run.

    Args:
        time: When, in seconds since 1970.
        step: The step after which it happened.
        text: What.
        is_fault: Whether somebody should look at it.
    """

    time: float
    step: int
    text: str
    is_fault: bool = False


def _event_of(record: Record) -> Event | None:
    """What a line of the metrics says of the course of the run, if anything."""
    kind, moment = record["kind"], (record["time"], record["step"])
    if kind == "resume":
        checkpoint = record.get("checkpoint")
        return Event(*moment, "started" if checkpoint is None else f"went on from {Path(checkpoint).name}")
    if kind == "end":
        detail = f": {record['detail']}" if record.get("detail") else ""
        return Event(*moment, f"{record['reason']}{detail}", is_fault=record["reason"] == FAILED)
    if kind == "no_checkpoint":
        return Event(*moment, f"no checkpoint: {record['problem']}", is_fault=True)
    if kind == "checkpoint":
        stalled = f", training stood still for {record['stall_seconds']:.1f} s" if record.get("behind") else ""
        return Event(*moment, f"checkpoint in {record['seconds']:.1f} s{stalled}")
    if kind == "step" and "bad_sample_ids" in record:
        samples = ", ".join(map(str, record["bad_sample_ids"]))
        return Event(*moment, f"left out: loss or gradient is not finite; samples {samples}", is_fault=True)
    if kind == "step" and "norm_limit" in record:
        text = f"left out: gradient norm {record['grad_norm']:.3g} is above {record['norm_limit']:.3g}"
        return Event(*moment, text, is_fault=True)
    return None


def _supervised_event(line: Record) -> Event | None:
    """What a line of the supervisor says of a failure; ends that were asked for are none."""
    if line.get("event") != "end" or not line.get("status"):
        return None
    words = str(line.get("last_words") or "").splitlines()
    return Event(
        line["time"], line["step"], f"exit status {line['status']}{': ' + words[-1] if words else ''}", is_fault=True
    )


def read_run_folder(folder: Path) -> RunFolder:
    """A run, from its folder.

    Raises:
        NewerFormatError: A later version wrote it.
        ValueError: It is no run's folder, or cannot be read.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; name the folder of a run, such as runs/001.")
    if (folder / MANIFEST).is_file():
        raise ValueError(f"{folder}: a checkpoint; name the folder of its run, two above it.")
    if not (folder / RUN_FILE).is_file():
        there = sorted(path.parent.name for path in folder.glob(f"*/{RUN_FILE}"))
        hint = f"runs in it: {', '.join(there)}" if there else "a run writes it when it starts"
        raise ValueError(f"{folder}: no folder of a run: it has no {RUN_FILE} ({hint}).")
    return read_on(RunFolder(folder, {}))


def read_on(run: RunFolder) -> RunFolder:
    """The same run by now; of files that grow only what was added is read.

    Raises:
        NewerFormatError: A later version wrote it.
        ValueError: It can no longer be read.
    """
    metrics = read_added(run.folder / METRICS_FILE, run.places.get(METRICS_FILE, Place()))
    log = read_added(run.folder / LOG_FILE, run.places.get(LOG_FILE, Place()))
    supervised = read_added(run.folder / SUPERVISE_FILE, run.places.get(SUPERVISE_FILE, Place()))
    if metrics.is_anew or log.is_anew or supervised.is_anew:
        return read_on(RunFolder(run.folder, {}))
    records, num_bad = _parsed(metrics.lines, ("kind", "step", "time"))
    starts, num_bad_starts = _parsed(supervised.lines, ("event", "time"))
    checkpoints = run.folder / CHECKPOINTS
    return replace(
        run,
        settings=read_run(run.folder),
        history=(*run.history, *records),
        records=tuple(_counting([*run.records], records)),
        log=(*run.log, *(line.decode("utf-8", "replace") for line in log.lines)),
        supervised=(*run.supervised, *starts),
        checkpoints=tuple(checkpoints_in(checkpoints)),
        latest=_pointed_name(checkpoints / LATEST),
        best=_pointed_name(checkpoints / BEST),
        num_unreadable=run.num_unreadable + num_bad + num_bad_starts,
        places={METRICS_FILE: metrics.place, LOG_FILE: log.place, SUPERVISE_FILE: supervised.place},
    )


def read_metrics(path: Path, kind: str | None = None) -> list[Record]:
    """Records of a `metrics.jsonl`, all or of one kind; none without a file.

    Lines that a kill cut short are left out, and so are those of steps that a resume went back behind: what comes after
    it takes their place.
    """
    records, _ = _parsed(read_added(path, Place()).lines, ("kind", "step"))
    return [record for record in _counting([], records) if kind in (None, record["kind"])]


def _parsed(lines: list[bytes], keys: tuple[str, ...]) -> tuple[list[Record], int]:
    """The lines that are objects with some keys, and the number of others."""
    found = [each for each in _values(lines) if isinstance(each, dict) and all(key in each for key in keys)]
    return found, len(lines) - len(found)


def _values(lines: list[bytes]) -> list[Any]:
    """What the readable lines hold."""
    was_on = gc.isenabled()
    gc.disable()  # it would walk again and again through the records, in which nothing points back
    try:
        return [
            value
            for first in range(0, len(lines), LINES_AT_ONCE)
            for value in _values_at_once(lines[first : first + LINES_AT_ONCE])
        ]
    finally:
        if was_on:
            gc.enable()


def _values_at_once(lines: list[bytes]) -> list[Any]:
    """What some lines hold: found in one call, so that records share their keys, or where that fails line by line."""
    with suppress(ValueError):
        values = json.loads(b"[" + b",".join(lines) + b"]")
        if len(values) == len(lines):
            return list(values)
    values = []
    for line in lines:
        with suppress(ValueError):
            values.append(json.loads(line))
    return values


def _counting(before: list[Record], added: list[Record]) -> list[Record]:
    """Which records count once some were added."""
    records = before
    for record in added:
        if record["kind"] == "resume":
            records = [each for each in records if each["kind"] == "resume" or each["step"] <= record["step"]]
        records.append(record)
    return records


def _pointed_name(pointer: Path) -> str | None:
    return (read_pointer(pointer) or None) if pointer.is_file() else None
