"""A run that `benchmarks/baseline.py` measures, and what a rank measures of it, whoever trains; needs only torch."""

from __future__ import annotations

import gc
import json
import re
import time
from dataclasses import dataclass
from pathlib import Path

import torch

PROFILED_OPS = 16


@dataclass(frozen=True)
class Cell:
    """One run.

    Args:
        model: Folder of a LLaDA model.
        rows: File of the rows with their noise, in the order of training; beside it, with `.documents`, the same for
            this package.
        method: `vanilla` or `lift3`.
        micro_batch: Rows of one forward of the plain trainer.
        accumulation: Its forwards of a step on each rank.
        num_steps: Steps, the first of which warms up and is not timed.
        pad_to: Tokens to which the plain trainer pads; `None`: the longest row of a micro-batch.
        is_packed: Whether this package runs rows without padding.
        engine_json: DeepSpeed's JSON of this package.
        out: Folder in which each rank writes what it measured.
        is_profiled: Whether ranks also write which operations took longest.
    """

    model: str
    rows: str
    method: str
    micro_batch: int
    accumulation: int
    num_steps: int
    pad_to: int | None
    is_packed: bool
    engine_json: str
    out: str
    is_profiled: bool


class Watch:
    """Clocks and memory of one rank: made before the model is, told of each step, and written at the end."""

    def __init__(self, cell: Cell, rank: int) -> None:
        """The peak of memory begins here."""
        self.cell, self.rank = cell, rank
        self.clocks: list[tuple[float, float]] = []
        self.profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")
        self.before = memory_bytes("VmRSS")

    def step_done(self) -> None:
        """Notes the clocks."""
        self.clocks.append((time.process_time(), time.perf_counter()))
        if self.cell.is_profiled and len(self.clocks) == 1:
            self.profiler.start()
        if self.cell.is_profiled and len(self.clocks) == self.cell.num_steps:
            self.profiler.stop()

    def write(self, losses: list[float]) -> None:
        """Seconds of all steps but the first, the peak beyond what was resident before, and the loss of every step."""
        cpu, wall = (self.clocks[-1][part] - self.clocks[0][part] for part in range(2))
        peak = memory_bytes("VmHWM") - self.before
        measured = {"cpu_seconds": cpu, "wall_seconds": wall, "losses": losses, "peak_bytes": peak}
        out = Path(self.cell.out)
        (out / f"{self.rank}.json").write_text(json.dumps(measured))
        if self.cell.is_profiled:
            table = self.profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=PROFILED_OPS)
            (out / f"{self.rank}.txt").write_text(table)


def memory_bytes(field: str) -> int:
    """Memory of this process: `VmRSS` now, `VmHWM` at its peak."""
    found = re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024
