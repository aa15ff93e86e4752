"""What threads of the ranks send each other beside training, in a group of their own, so that nothing interleaves.

A thread waits for other ranks only until it is told to stop: the end of a run on one rank, in order or not, keeps no
other one's thread from ending. What it leaves unfinished fails on the others when this process ends.
"""

from __future__ import annotations

import threading
import time

import torch
from torch import Tensor
from torch.distributed import Work

from .control import gloo_group, waiting_in_control

POLL_SECONDS = 0.002


class BackgroundGroup:
    """A gloo group for one thread of each rank; all ranks make it together."""

    def __init__(self) -> None:
        self.group = gloo_group()

    def total(self, values: Tensor, stopping: threading.Event) -> Tensor:
        """The sum over the ranks, in place.

        Raises:
            RuntimeError: `stopping` was set while waiting, or another rank is gone.
        """
        return self._await(torch.distributed.all_reduce(values, group=self.group, async_op=True), values, stopping)

    def send(self, parts: list[bytes], sizes: list[int], stopping: threading.Event) -> list[bytes]:
        """Sends part r to rank r; returns what each rank sent here: `sizes` bytes.

        Raises:
            RuntimeError: As `total`.
        """
        sent = torch.frombuffer(bytearray(b"".join(parts) or b"-"), dtype=torch.uint8)[: sum(map(len, parts))]
        received = torch.empty(sum(sizes), dtype=torch.uint8)
        work = torch.distributed.all_to_all_single(
            received, sent, sizes, [len(part) for part in parts], group=self.group, async_op=True
        )
        return [part.numpy().tobytes() for part in self._await(work, received, stopping).split(sizes)]

    def _await(self, work: Work, result: Tensor, stopping: threading.Event) -> Tensor:
        while not work.is_completed():
            if stopping.is_set():
                raise RuntimeError("stopped while other ranks were waited for.")
            time.sleep(POLL_SECONDS)
        with waiting_in_control():
            work.wait()
        return result
