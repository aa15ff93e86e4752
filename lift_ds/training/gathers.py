"""How long a rank's passes wait for weights that ZeRO-3 gathers from the others.

A rank that is late lets the others wait there, so that every rank's forward takes as long as the slowest one's. What is
left of a step without this wait is the rank's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .modes import stopwatch


class GatherClock:
    """The seconds in which modules get their weights, in all passes of a step.

    Args:
        optimizer: DeepSpeed's; under other stages than 3 there is nothing to wait for.
        device: Which one computes; the wait is that of its stream, or of the host on CPUs.
    """

    def __init__(self, optimizer: Any, device: torch.device) -> None:
        self.pending: list[Callable[[], float]] | None = None
        if not hasattr(optimizer, "parameter_offload"):
            return
        coordinator = optimizer.parameter_offload.get_param_coordinator()  # DeepSpeed 0.19.8 keeps one
        fetch = coordinator.fetch_sub_module

        def timed_fetch(*arguments: Any, **options: Any) -> None:
            pending = self.pending
            if pending is None:
                fetch(*arguments, **options)
                return
            with stopwatch(device) as seconds:
                fetch(*arguments, **options)
            pending.append(seconds)

        coordinator.fetch_sub_module = timed_fetch

    def begin(self) -> None:
        """A step begins; what runs between steps does not count."""
        self.pending = []

    def read(self) -> float:
        """Seconds since the step began; the device must have finished them."""
        pending, self.pending = self.pending or [], None
        return sum(told() for told in pending)
