"""What threads of the ranks send each other beside training, in a group of their own, so that nothing interleaves.

A thread waits for other ranks only until it is told to stop: the end of a run on one rank, in order or not, keeps no
other one's thread from ending. What it leaves unfinished fails on the others when this process ends.
"""

from __future__ import annotations

import threading
import time
from typing import Protocol

import torch
from torch import Tensor
from torch.distributed import Work

from .control import gloo_group, waiting_in_control

POLL_SECONDS = 0.002


class Links(Protocol):
    """What connects the threads that make steps; all ranks call the same in one order, until `stopping` is set."""

    def total(self, values: Tensor, stopping: threading.Event) -> Tensor:
        """The sum over the ranks."""

    def send(self, parts: list[bytes], sizes: list[int], stopping: threading.Event) -> list[bytes]:
        """Sends part r to rank r; returns what each rank sent here, whose sizes are known."""

    def exchange(self, parts: list[Tensor], stopping: threading.Event) -> list[Tensor]:
        """Sends part r, one-dimensional, to rank r; returns what each rank sent here."""


class NoLinks:
    """Of a rank without others."""

    def total(self, values: Tensor, stopping: threading.Event) -> Tensor:
        """The values."""
        return values

    def send(self, parts: list[bytes], sizes: list[int], stopping: threading.Event) -> list[bytes]:
        """What it sent itself."""
        return parts

    def exchange(self, parts: list[Tensor], stopping: threading.Event) -> list[Tensor]:
        """What it sent itself."""
        return parts


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

    def exchange(self, parts: list[Tensor], stopping: threading.Event) -> list[Tensor]:
        """Sends part r, one-dimensional, to rank r; returns what each rank sent here, whatever its size.

        Raises:
            RuntimeError: As `total`.
        """
        sizes = torch.tensor([len(part) for part in parts])
        expected = torch.empty_like(sizes)
        work = torch.distributed.all_to_all_single(expected, sizes, group=self.group, async_op=True)
        self._await(work, expected, stopping)
        received = parts[0].new_empty(int(expected.sum()))
        work = torch.distributed.all_to_all_single(
            received, torch.cat(parts), expected.tolist(), sizes.tolist(), group=self.group, async_op=True
        )
        return list(self._await(work, received, stopping).split(expected.tolist()))

    def _await(self, work: Work, result: Tensor, stopping: threading.Event) -> Tensor:
        while not work.is_completed():
            if stopping.is_set():
                raise RuntimeError("stopped while other ranks were waited for.")
            time.sleep(POLL_SECONDS)
        with waiting_in_control():
            work.wait()
        return result


class ThreadRanks:
    """The ranks as one thread of each sees them, for what the training thread does through `Collectives`.

    Args:
        links: What connects the threads.
        stopping: Set when the run ends: nobody is waited for any more.
    """

    def __init__(self, links: Links, rank: int, world_size: int, stopping: threading.Event) -> None:
        self.links, self.rank, self.world_size, self.stopping = links, rank, world_size, stopping
        self.bytes_moved = 0

    def all_reduce(self, values: Tensor, op: str = "sum") -> Tensor:
        """The sum over the ranks."""
        assert op == "sum"
        return self.links.total(values, self.stopping)

    def exchange(self, parts: list[Tensor]) -> list[Tensor]:
        """Sends part r, one-dimensional, to rank r; returns what each rank sent here."""
        self.bytes_moved += sum(part.nbytes for rank, part in enumerate(parts) if rank != self.rank)
        return self.links.exchange(parts, self.stopping)
