"""Early stopping: a run ends once its held-out loss has not improved for `eval.patience` measurements."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from lift_ds.text_files import load_json, read_text

PATIENCE_FILE = "patience.json"


class Patience:
    """The lowest held-out loss so far, and how many measurements came after it; `most` is `eval.patience`, 0: endless.

    The loss is that of all ranks, so that all of them end together.
    """

    def __init__(self, most: int) -> None:
        self.most, self.best, self.num_since, self.step, self.measured_on = most, math.inf, 0, -1, ""

    @property
    def is_over(self) -> bool:
        """Whether the run should end."""
        return 0 < self.most <= self.num_since

    def note(self, step: int, loss: float, measured_on: str = "") -> None:
        """Takes in a measurement after `step`, once; one that is not a number is no improvement.

        Losses of other rows (`measured_on`) do not compare: it begins anew.
        """
        if step <= self.step:
            return
        if measured_on != self.measured_on:
            self.best, self.num_since, self.measured_on = math.inf, 0, measured_on
        self.step = step
        if loss < self.best:
            self.best, self.num_since = loss, 0
        else:
            self.num_since += 1

    def save(self, folder: Path) -> None:
        """Writes it into a checkpoint, where it is asked for."""
        if self.most:
            state: dict[str, Any] = {"step": self.step, "best": self.best if math.isfinite(self.best) else None}
            state |= {"measured_on": self.measured_on}
            (folder / PATIENCE_FILE).write_text(json.dumps(state | {"num_since": self.num_since}), encoding="ascii")

    def load(self, folder: Path) -> bool:
        """Reads a checkpoint's; returns whether there was any to read, where it is needed."""
        if not self.most:
            return True
        if not (folder / PATIENCE_FILE).exists():
            return False
        state = load_json(read_text(folder / PATIENCE_FILE))
        self.best = math.inf if state["best"] is None else float(state["best"])
        self.num_since, self.step = int(state["num_since"]), int(state["step"])
        self.measured_on = str(state["measured_on"])
        return True
