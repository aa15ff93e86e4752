"""The runs of a report: each told apart by a short name, a colour, and what it was taught."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lift_ds.config.deepspeed import flat
from lift_ds.storage.run_folder import RunFolder
from lift_ds.training.metrics import NUM_TENTHS

from .plots import NUM_COLORS, Key
from .series import column, rows_of


@dataclass(frozen=True)
class ReportedRun:
    """A run in a report.

    Args:
        folder: What its folder holds.
        key: Its name, colour and dashes, in every plot.
        task: What it was taught: the names of its data.
    """

    folder: RunFolder
    key: Key
    task: str

    @property
    def label(self) -> str:
        """Its name."""
        return self.key.label

    @cached_property
    def records(self) -> list[dict[str, Any]]:
        """Its recorded steps."""
        return self.folder.of_kind("step")

    @cached_property
    def steps(self) -> np.ndarray:
        """Their numbers (N,)."""
        return column(self.records, "step")

    def column(self, *path: str) -> np.ndarray:
        """A number of each recorded step (N,), see `series.column`."""
        if path not in self.columns:
            self.columns[path] = column(self.records, *path)
        return self.columns[path]

    @cached_property
    def columns(self) -> dict[tuple[str, ...], np.ndarray]:
        """Those that were asked for."""
        return {}

    @cached_property
    def by_level(self) -> tuple[np.ndarray, np.ndarray]:
        """Loss of learned tokens, and documents, of each recorded step by tenth of the levels: (N, 10) each."""
        losses, documents = (rows_of(self.records, name, NUM_TENTHS) for name in ("t_token_nll", "t_documents"))
        return losses, documents

    @cached_property
    def heldout(self) -> list[dict[str, Any]]:
        """Its held-out losses that are numbers."""
        return [record for record in self.folder.of_kind("heldout") if record.get("mean") is not None]

    @property
    def heldout_rows(self) -> str:
        """What tells held-out rows apart: their names, and how many tokens were masked, by level and frequency."""
        first = self.heldout[0] if self.heldout else {}
        return f"{self.task} {first.get('levels')} {first.get('num_tokens_by_level_and_frequency')}"

    @property
    def method(self) -> str:
        """The objective, with where its scores come from where it has a choice."""
        objective = self.folder.run.get("objective", {})
        scoring = objective.get("scoring")
        return f"{objective.get('method', '?')}{f', {scoring} scores' if scoring else ''}"

    @property
    def num_steps(self) -> int | None:
        """Steps that it was to take."""
        return self.folder.run.get("optim", {}).get("steps")

    def state(self, now: float) -> str:
        """Whether it is over, as far as its folder says so."""
        if self.folder.end is not None:
            return self.folder.end
        if self.folder.last_time is None:
            return "not begun"
        return f"no end recorded: it trains or was cut short; last line {ago(now - self.folder.last_time)} ago"

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Its settings by dotted key."""
        parts = {**self.folder.run, "deepspeed": self.folder.settings.get("deepspeed", {})}
        return flat(parts) | {"world_size": self.folder.settings.get("world_size")}


def told_apart(folders: Sequence[RunFolder]) -> list[ReportedRun]:
    """Runs with names, colours and dashes."""
    tasks = [task_of(each.run) for each in folders]
    kinds = list(dict.fromkeys(tasks))
    names = short_names([each.folder.resolve() for each in folders])
    return [
        ReportedRun(each, Key(name, number, kinds.index(task) + number // NUM_COLORS), task)
        for number, (each, name, task) in enumerate(zip(folders, names, tasks, strict=True))
    ]


def task_of(run: dict[str, Any]) -> str:
    """The data of a run, by the names that its settings have for them."""
    data = run.get("data", {})
    sources = data.get("sources") or [data]
    paths = [source.get("path") for source in sources if isinstance(source, dict)]
    names = [str(name) for path in paths for name in (path if isinstance(path, list) else [path]) if name is not None]
    return ", ".join(names) or "no data named"


def short_names(folders: Sequence[Path]) -> list[str]:
    """As many of the last parts of each path as tell them all apart."""
    for depth in range(1, max(len(folder.parts) for folder in folders) + 1):
        names = ["/".join(folder.parts[-depth:]) for folder in folders]
        if len(set(names)) == len(names):
            break
    return names


def ago(seconds: float) -> str:
    """A length of time in its two largest units."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (rest, "s")]
    shown = [index for index, (amount, _) in enumerate(parts) if amount][:1] or [3]
    return " ".join(f"{amount} {unit}" for amount, unit in parts[shown[0] : shown[0] + 2])


def moment(seconds: float) -> str:
    """A time of day, on the machine that reads."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
