"""Which packs of a step make a micro-batch, and which rank computes it: a function of their lengths alone.

The packs, the longest first, are cut into consecutive micro-batches, as few as the limit allows and as many for every
rank; of all such cuts the one whose costliest micro-batch costs least. Micro-batch k is rank (k mod N)'s. So ranks
compute about as much at the same time, in rows of about the same length. The cost of a document of L tokens, in tokens:

    L + pair_cost L^2

A padded micro-batch costs its number of rows times the longest; a packed one the sum. Where the rows of a micro-batch
are given instead of its tokens, the packs are dealt back and forth, and each rank's are cut into as many rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

HALVINGS = 24  # of the interval that the least cost is searched in


@dataclass(frozen=True)
class PackSize:
    """Tokens of a pack and its cost, in tokens."""

    num_tokens: int
    cost: float


@dataclass(frozen=True)
class BatchRule:
    """How a step is cut.

    Args:
        max_rows: Packs of a micro-batch at most, or `None` where `max_tokens` says what it takes.
        max_tokens: Tokens of a micro-batch at most, padding counted; a pack that has more is alone.
        is_packed: Whether documents run one after the other, without padding.
        pair_cost: What a pair of tokens that see each other costs, where a token costs 1.
    """

    max_rows: int | None = None
    max_tokens: int | None = None
    is_packed: bool = False
    pair_cost: float = 0.0

    def __post_init__(self) -> None:
        assert (self.max_rows is None) != (self.max_tokens is None)

    def size(self, lengths: Sequence[int]) -> PackSize:
        """Of a pack of documents of these lengths."""
        return PackSize(sum(lengths), sum(length + self.pair_cost * length * length for length in lengths))

    def cut(self, sizes: Sequence[PackSize], num_ranks: int) -> list[list[list[int]]]:
        """For each rank its micro-batches, as places in `sizes`; as many on each, some empty where packs are few."""
        order = sorted(range(len(sizes)), key=lambda place: (-sizes[place].num_tokens, place))
        if self.max_rows is not None:
            return _cut_by_rows(order, self.max_rows, num_ranks)
        ordered = [sizes[place] for place in order]
        lowest, highest = 0.0, len(ordered) * max((size.cost for size in ordered), default=0.0)
        parts = self._parts(ordered, highest)
        num_parts = max(1, -(-len(parts) // num_ranks)) * num_ranks
        for _ in range(HALVINGS):
            tried = (lowest + highest) / 2
            found = self._parts(ordered, tried)
            if len(found) > num_parts:
                lowest = tried
            else:
                highest, parts = tried, found
        parts += [range(0)] * (num_parts - len(parts))
        return [[[order[place] for place in part] for part in parts[rank::num_ranks]] for rank in range(num_ranks)]

    def _parts(self, sizes: Sequence[PackSize], most: float) -> list[range]:
        """Consecutive parts, each as long as the limit and a cost of `most` allow; at least one pack each."""
        assert self.max_tokens is not None
        parts, start, num_tokens, cost = list[range](), 0, 0, 0.0
        for place, size in enumerate(sizes):
            rows, longest = place - start + 1, sizes[start]
            num_tokens = num_tokens + size.num_tokens if self.is_packed else rows * longest.num_tokens
            cost = cost + size.cost if self.is_packed else rows * longest.cost
            if rows > 1 and (num_tokens > self.max_tokens or cost > most):
                parts.append(range(start, place))
                start, num_tokens, cost = place, size.num_tokens, size.cost
        return [*parts, range(start, len(sizes))] if sizes else []


def _cut_by_rows(order: Sequence[int], max_rows: int, num_ranks: int) -> list[list[list[int]]]:
    """Dealt back and forth, so that no rank has the longer pack of every round."""
    rounds = [order[start : start + num_ranks] for start in range(0, len(order), num_ranks)]
    num_parts = max(1, -(-len(rounds) // max_rows))
    of_ranks = [list[int]() for _ in range(num_ranks)]
    for number, dealt in enumerate(rounds):
        for turn, place in enumerate(dealt):
            of_ranks[turn if number % 2 == 0 else num_ranks - 1 - turn].append(place)
    return [[mine[part * max_rows : (part + 1) * max_rows] for part in range(num_parts)] for mine in of_ranks]
