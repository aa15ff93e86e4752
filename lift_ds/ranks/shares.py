"""What evaluation needs of a distributed run: who computes what, in lockstep."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")


class Ranks(Protocol):
    """The ranks of a run; `ranks.collectives.Collectives` is one."""

    @property
    def rank(self) -> int:
        """This rank."""

    @property
    def world_size(self) -> int:
        """Number of ranks."""

    @property
    def device(self) -> torch.device:
        """Where this rank computes."""

    def all_reduce(self, values: Tensor, op: str = "sum") -> Tensor:
        """Sum or maximum over ranks."""

    def gather_objects(self, mine: Any) -> list[Any]:
        """Every rank's object, in rank order, on every rank."""

    def on_main(self, action: Callable[[], Any]) -> Any:
        """What `action` returns on rank 0, on every rank; its errors, too."""


class Alone:
    """A process without others.

    Args:
        device: Where it computes.
    """

    rank = 0
    world_size = 1

    def __init__(self, device: torch.device | None = None) -> None:
        """Stores the device; the CPU where none is given."""
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


def agreement(ranks: Ranks) -> Callable[[bool], bool]:
    """Tells, by a collective of all ranks, whether something is so on any of them."""
    return lambda here: bool(ranks.all_reduce(torch.tensor([float(here)]), "max") > 0)


def equal_share(items: Sequence[Item], ranks: Ranks) -> list[tuple[Item, bool]]:
    """This rank's items, as many on every rank: (item, counts); repeats that fill up do not count.

    Raises:
        ValueError: There are no items.
    """
    if not items:
        raise ValueError("nothing to evaluate: no items.")
    mine = [(item, True) for item in items[ranks.rank :: ranks.world_size]]
    return mine + [(items[0], False)] * (-(-len(items) // ranks.world_size) - len(mine))
