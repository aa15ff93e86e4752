"""Where a step's seconds go on one rank, and how much memory was in use.

    seconds = data + scoring + forward + backward + communication + optimizer + other

CUDA events tell the parts apart, or the clock on CPUs; they are read when the step is over: none of them waits for the
device. Communication is what the host waits for in our own collectives, which all end on the CPU. What DeepSpeed
gathers and reduces runs inside the passes and the update, and is part of them: a profile shows how much of it is
exposed (`model.profile_steps`).
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from lift_ds.ranks.shares import Collectives

from .modes import timed

PARTS = ("data", "scoring", "forward", "backward", "communication", "optimizer", "other")
GIB = 2**30


class StepClock:
    """The parts of one step, which begins when this is made.

    Args:
        ranks: Whose device computes, and whose collectives are counted.
    """

    def __init__(self, ranks: Collectives) -> None:
        self.ranks = ranks
        self.began = time.perf_counter()
        self.waited = ranks.communication_seconds
        self.elapsed = 0.0
        self.pending: list[tuple[str, Callable[[], float]]] = []

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Times its block as one of `PARTS`; a profile has it by this name."""
        before = self.ranks.activity.at(name)
        with timed(self.ranks.device, name) as seconds:
            yield
        self.ranks.activity.at(before)
        self.add(name, seconds)

    def add(self, name: str, seconds: Callable[[], float]) -> None:
        """Takes what `timed` yielded; the scoring pass so, which lies inside a forward."""
        self.pending.append((name, seconds))

    def read(self) -> dict[str, float]:
        """This rank's seconds by part, so far; waits, once, until the device is done."""
        if self.ranks.device.type == "cuda":
            torch.cuda.current_stream(self.ranks.device).synchronize()
        seconds = dict.fromkeys(PARTS, 0.0)
        for name, told in self.pending:
            seconds[name] += told()
        seconds["forward"] -= seconds["scoring"]
        now, waited = time.perf_counter(), self.ranks.communication_seconds
        seconds["communication"] = waited - self.waited
        self.elapsed, self.waited = now - self.began, waited
        seconds["other"] = self.elapsed - sum(seconds.values())
        return seconds

    def rest(self) -> dict[str, float]:
        """The step's `seconds` by now, and by part what came after `read`, of which no other rank knows."""
        seconds, waited = time.perf_counter() - self.began, self.ranks.communication_seconds - self.waited
        return {"seconds": seconds, "communication": waited, "other": seconds - self.elapsed - waited}


def peak_memory(device: torch.device) -> tuple[float, float]:
    """Most memory that this process had so far, in GiB: allocated on its device, and reserved there by the allocator.

    On CPUs resident, and 0.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GIB, torch.cuda.max_memory_reserved(device) / GIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB, 0.0
