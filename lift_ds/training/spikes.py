"""Steps that are left out because their gradient is far larger than those before (`optim.skip_above`).

    limit = skip_above x median of the norms of the last 64 steps, none while there are fewer than 16

Every finite norm counts, also that of a step that was left out: a run whose gradients stay large goes on after half a
window. The norm is that of all ranks, before clipping, so that all of them leave out the same steps.
"""

from __future__ import annotations

import json
import math
import statistics
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lift_ds.text_files import load_json, read_text

NORMS_FILE = "gradient_norms.json"
WINDOW, FEWEST = 64, 16


class Spikes:
    """The norms of the last steps; `factor` is `optim.skip_above`, and nothing is left out without one."""

    def __init__(self, factor: float | None) -> None:
        self.factor, self.norms = factor, deque[float](maxlen=WINDOW)

    @property
    def limit(self) -> float:
        """Above which norm the next step is left out; infinite where it is not."""
        if self.factor is None or len(self.norms) < FEWEST:
            return math.inf
        return self.factor * statistics.median(self.norms)

    def note(self, norm: float) -> None:
        """Takes in the norm of a step."""
        if math.isfinite(norm):
            self.norms.append(norm)

    def save(self, folder: Path) -> None:
        """Writes the norms into a checkpoint, where steps may be left out."""
        if self.factor is not None:
            (folder / NORMS_FILE).write_text(json.dumps(list(self.norms)), encoding="ascii")

    def load(self, folder: Path) -> bool:
        """Reads a checkpoint's norms; returns whether there were any to read, where they are needed."""
        if self.factor is None:
            return True
        if not (folder / NORMS_FILE).exists():
            return False
        norms: Any = load_json(read_text(folder / NORMS_FILE))
        self.norms.extend(map(float, norms))
        return True


def guard_update(optimizer: Any, inner: Any, limit: Callable[[], float]) -> None:
    """Has DeepSpeed's `optimizer` leave out the update of its `inner` one where the norm exceeds `limit()`.

    DeepSpeed 0.19.8 knows the norm of all ranks (`_global_grad_norm`) by the time when it asks for the update, under
    stage 3 once for every group of parameters, and clears gradients and copies the weights that did not change.
    """
    update = inner.step

    def step(*arguments: Any, **options: Any) -> Any:
        most = limit()
        if most < math.inf and float(optimizer._global_grad_norm) > most:
            return None
        return update(*arguments, **options)

    inner.step = step
