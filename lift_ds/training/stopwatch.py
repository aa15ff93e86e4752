"""Seconds that a part of a step takes, on the device that computes it."""

from __future__ import annotations

import time

import torch


class Stopwatch:
    """Adds up the seconds inside its `with` blocks; on CUDA by events, so that nothing waits for them."""

    def __init__(self) -> None:
        """Starts at 0."""
        self.on_gpu = torch.cuda.is_available()
        self.seconds = 0.0
        self.events: list[torch.cuda.Event] = []

    def __enter__(self) -> None:
        """Starts."""
        self.mark(-1.0)

    def __exit__(self, *problem: object) -> None:
        """Stops."""
        self.mark(1.0)

    def mark(self, sign: float) -> None:
        """Notes the time, or has the device note it when it gets there."""
        if self.on_gpu:
            self.events.append(torch.cuda.Event(enable_timing=True))
            self.events[-1].record()
        else:
            self.seconds += sign * time.perf_counter()

    def pop(self) -> float:
        """Seconds since the last call; on CUDA the device must have finished them."""
        pairs = zip(self.events[::2], self.events[1::2], strict=True)
        found = self.seconds + sum(begin.elapsed_time(end) / 1000 for begin, end in pairs)
        self.seconds, self.events = 0.0, []
        return found
