"""Which lane each slot of an optimizer step takes from, and which slots are this rank's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class SlotPlan:
    """Which lane each slot of a step takes from, and which slots are this rank's.

    Slot j of step s is number s G + j of all slots; it takes from lane (number mod V) and belongs to rank (number mod
    N). Where N divides V, a lane belongs to one rank only.

    Args:
        global_batch: Slots G of a step, over all ranks.
        num_lanes: V.
        rank: This rank.
        world_size: Number of ranks N.
        follows_all: Whether this rank moves on the lanes of slots that are not its own.
    """

    global_batch: int
    num_lanes: int
    rank: int
    world_size: int
    follows_all: bool

    def slots(self, step: int) -> Iterator[tuple[int, int, bool]]:
        """(slot, lane, whether it is this rank's) of a step's slots that this rank takes or follows."""
        for slot in range(self.global_batch):
            number = step * self.global_batch + slot
            is_own = number % self.world_size == self.rank
            if is_own or self.follows_all:
                yield slot, number % self.num_lanes, is_own


def micro_batches_per_step(global_batch: int, micro_batch: int, world_size: int) -> int:
    """Forwards per step on every rank: the gradient accumulation that gives the global batch."""
    return -(-global_batch // (micro_batch * world_size))
