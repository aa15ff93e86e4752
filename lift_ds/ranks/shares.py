"""Who computes what, and what moves between ranks besides weights and gradients; all call the same in one order."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor

from .control import control_group, waiting_in_control
from .watchdog import Activity

Item = TypeVar("Item")


class Collectives:
    """All ranks: tensors move in the default process group, objects and waits in the control group.

    Args:
        device: Where this rank computes; tensors travel through it.

    Attributes:
        communication_seconds: What the host has waited for in `all_reduce` and `exchange`.
        activity: What this rank does.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.control = control_group()
        self.communication_seconds = 0.0
        self.activity = Activity()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the seconds of its block."""
        began, before = time.perf_counter(), self.activity.at("waiting for the other ranks")
        yield
        self.communication_seconds += time.perf_counter() - began
        self.activity.at(before)

    @property
    def rank(self) -> int:
        """This rank."""
        return int(torch.distributed.get_rank())

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return int(torch.distributed.get_world_size())

    def all_reduce(self, values: Tensor, op: str = "sum") -> Tensor:
        """Sum or maximum over ranks, in place, on this rank's device; returned on the CPU."""
        with self.waiting():
            moved = values.to(self.device)
            torch.distributed.all_reduce(moved, op=getattr(torch.distributed.ReduceOp, op.upper()))
            return moved.cpu()

    def exchange(self, parts: list[Tensor]) -> list[Tensor]:
        """Sends part r, one-dimensional, to rank r; returns what each rank sent here, on the CPU."""
        with self.waiting():
            sizes = torch.tensor([len(part) for part in parts], device=self.device)
            expected = torch.empty_like(sizes)
            torch.distributed.all_to_all_single(expected, sizes)
            received = torch.empty(int(expected.sum()), dtype=parts[0].dtype, device=self.device)
            sent = torch.cat(parts).to(self.device)
            torch.distributed.all_to_all_single(received, sent, expected.tolist(), sizes.tolist())
            return list(received.cpu().split(expected.tolist()))

    def on_main(self, action: Callable[[], Any]) -> Any:
        """What `action` returns on rank 0, on every rank.

        Raises:
            ValueError: It failed there; every rank raises the same message.
        """
        outcome: list[Any] = [None, None]
        if self.rank == 0:
            try:
                outcome[0] = action()
            except (ValueError, OSError) as error:
                outcome[1] = str(error)
        with waiting_in_control():
            torch.distributed.broadcast_object_list(outcome, src=0, group=self.control)
        if outcome[1] is not None:
            raise ValueError(outcome[1])
        return outcome[0]

    def gather_objects(self, mine: Any) -> list[Any]:
        """Every rank's object, in rank order, on every rank."""
        gathered: list[Any] = [None] * self.world_size
        with waiting_in_control():
            torch.distributed.all_gather_object(gathered, mine, group=self.control)
        return gathered

    def barrier(self) -> None:
        """Waits for every rank."""
        self.gather_objects(None)  # torch's barrier would take the GPU that the default group is bound to


class Alone:
    """A process without others; it computes on the CPU where no device is given."""

    rank = 0
    world_size = 1

    def __init__(self, device: torch.device | None = None) -> None:
        self.device = device or torch.device("cpu")

    def all_reduce(self, values: Tensor, op: str = "sum") -> Tensor:
        """The values."""
        return values

    def gather_objects(self, mine: Any) -> list[Any]:
        """Its own object."""
        return [mine]

    def on_main(self, action: Callable[[], Any]) -> Any:
        """What it returns."""
        return action()


Ranks = Collectives | Alone


def agreement(ranks: Ranks) -> Callable[[bool], bool]:
    """Tells, by a collective of all ranks, whether something is so on any of them."""
    return lambda here: bool(ranks.all_reduce(torch.tensor([float(here)]), "max") > 0)


def balanced(sizes: dict[str, int], num_shares: int) -> list[list[str]]:
    """Names in shares of about the same size: the largest first, each to the share that is smallest so far."""
    shares = [(0, number, list[str]()) for number in range(num_shares)]
    for name in sorted(sizes, key=lambda name: -sizes[name]):
        size, number, names = heapq.heappop(shares)
        heapq.heappush(shares, (size + sizes[name], number, [*names, name]))
    return [names for _, _, names in sorted(shares, key=lambda share: share[1])]


def equal_share(items: Sequence[Item], ranks: Ranks) -> list[tuple[Item, bool]]:
    """This rank's items, as many on every rank: (item, counts); repeats that fill up do not count.

    Raises:
        ValueError: There are no items.
    """
    if not items:
        raise ValueError("nothing to evaluate: no items.")
    mine = [(item, True) for item in items[ranks.rank :: ranks.world_size]]
    return mine + [(items[0], False)] * (-(-len(items) // ranks.world_size) - len(mine))
