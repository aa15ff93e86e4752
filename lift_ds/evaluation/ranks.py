"""What evaluation needs of a distributed run: who computes what, in lockstep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")


class Ranks(Protocol):
    """The ranks of a run; `training.collectives.Collectives` is one."""

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


def equal_share(items: Sequence[Item], ranks: Ranks) -> list[tuple[Item, bool]]:
    """This rank's items, as many on every rank: (item, counts); repeats that fill up do not count.

    Raises:
        ValueError: There are no items.
    """
    if not items:
        raise ValueError("nothing to evaluate: no items.")
    mine = [(item, True) for item in items[ranks.rank :: ranks.world_size]]
    return mine + [(items[0], False)] * (-(-len(items) // ranks.world_size) - len(mine))
