"""Which batches a rank computes."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from lift_ds.evaluation.ranks import Ranks

Rounds = list[tuple[int, bool]]
Bar = Callable[[Rounds], Iterable[tuple[int, bool]]]
"""Shows how far a loop over rounds has come."""


def rounds(num_batches: int, ranks: Ranks) -> Rounds:
    """The batches of this rank, as many on every rank: (number, counts); repeats that fill up do not count.

    Which items make a batch does not depend on the number of ranks, and so no result does.
    """
    numbers = range(ranks.rank, -(-num_batches // ranks.world_size) * ranks.world_size, ranks.world_size)
    return [(min(number, num_batches - 1), number < num_batches) for number in numbers]
