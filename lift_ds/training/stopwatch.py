"""Seconds that a part of a step takes, on the device that computes it."""

from __future__ import annotations

import time

import torch


class Stopwatch:
    """The seconds inside one `with` block; on CUDA by events, so that nothing waits for them.

    Args:
        device: What computes; a CPU's work is timed by the clock also where there is CUDA.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.on_gpu = device.type == "cuda"
        self.times: list[float] = []
        self.events: list[torch.cuda.Event] = []

    def __enter__(self) -> None:
        """Starts."""
        self.mark()

    def __exit__(self, *problem: object) -> None:
        """Stops."""
        self.mark()

    def mark(self) -> None:
        """Notes the time, or has the device note it when it gets there."""
        if not self.on_gpu:
            self.times.append(time.perf_counter())
            return
        self.events.append(torch.cuda.Event(enable_timing=True))
        self.events[-1].record(torch.cuda.current_stream(self.device))

    @property
    def seconds(self) -> float:
        """What it took; on CUDA the device must have finished it."""
        if self.on_gpu:
            begin, end = self.events
            return float(begin.elapsed_time(end)) / 1000
        return self.times[1] - self.times[0]
