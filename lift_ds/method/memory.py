"""How hard each response token of each training row is: what a run remembers of it beside the table by token and level.

    residual <- residual + max(1 / n, RATE) (-log p(gold) - table(token, level) - residual)       n-th observation
    expected(level) = table(token, level) + residual n / (n + PRIOR_COUNT)

A row that was never seen has the table's word alone. Which documents are scored exactly, where only some can be: those
of most doubt,

    k (1 - k / |S|) (1 + 1 / (1 + n))        k of |S| are chosen, n observations of a token on average

that is, where most is at stake between a good choice and one at random, and least is known. A token's record has two
bytes:

    8 bits   residual, as sign(r) (|r| / LARGEST)^(1/2) 127, rounded: finer near 0
    4 bits   observations, at most 15
    4 bits   bin of the last one's level

Rows are numbered through; each block of `BLOCK_ROWS` has an owner rank, block mod N. A row is a document's response
tokens, in their order, fillers left out; where a token stands among them is its place.

Source: none; the public code has no such memory.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

BLOCK_ROWS = 256
RATE = 0.5
PRIOR_COUNT = 0.5
LARGEST = 16.0  # nats of residual
MOST_COUNTED = 15
STEPS = 127


@dataclass(frozen=True)
class Records:
    """What is remembered of some tokens, all (R,).

    Args:
        residuals: float32, nats beyond the table.
        counts: int64, observations, at most 15.
        bins: int64, `level_bin` of the last one.
    """

    residuals: np.ndarray
    counts: np.ndarray
    bins: np.ndarray

    @staticmethod
    def unpacked(packed: np.ndarray) -> Records:
        """Of uint16 (R,)."""
        coded = (packed >> 8).astype(np.uint8).view(np.int8).astype(np.float32) / STEPS
        residuals = np.sign(coded) * np.square(coded) * np.float32(LARGEST)
        return Records(residuals, ((packed >> 4) & 15).astype(np.int64), (packed & 15).astype(np.int64))

    def packed(self) -> np.ndarray:
        """As uint16 (R,)."""
        share = np.minimum(np.abs(self.residuals) / np.float32(LARGEST), 1)
        coded = np.rint(np.sign(self.residuals) * np.sqrt(share) * STEPS).astype(np.int8)
        counts = np.minimum(self.counts, MOST_COUNTED)
        return coded.view(np.uint8).astype(np.uint16) << 8 | (counts << 4 | self.bins).astype(np.uint16)

    def observed(self, residuals: np.ndarray, bins: np.ndarray) -> Records:
        """After one more observation of each token, float32 (R,) in nats beyond the table, at level bins (R,)."""
        rate = np.maximum(1 / (self.counts + 1), RATE).astype(np.float32)
        moved = self.residuals + rate * (residuals - self.residuals)
        return Records(moved, self.counts + 1, bins)

    @property
    def trusted(self) -> np.ndarray:
        """Residuals (R,), shrunk by how few observations they rest on."""
        return self.residuals * (self.counts / (self.counts + PRIOR_COUNT)).astype(np.float32)


@dataclass
class _Block:
    """The rows of a block that were seen, in the order in which they came."""

    starts: np.ndarray = field(default_factory=lambda: np.zeros(BLOCK_ROWS, np.int32))
    sizes: np.ndarray = field(default_factory=lambda: np.zeros(BLOCK_ROWS, np.int32))  # 0: not seen
    records: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint16))
    num_used: int = 0

    def row(self, index: int) -> np.ndarray:
        """A row's records, of which writes go into the block."""
        start = self.starts[index]
        return self.records[start : start + self.sizes[index]]

    def add(self, index: int, size: int) -> None:
        """Makes room for a row."""
        needed = self.num_used + size
        if needed > len(self.records):
            grown = np.zeros(max(needed, len(self.records) * 5 // 4), np.uint16)
            grown[: self.num_used] = self.records[: self.num_used]
            self.records = grown
        self.starts[index], self.sizes[index], self.num_used = self.num_used, size, needed

    def in_order(self) -> np.ndarray:
        """All records, by row."""
        return np.concatenate([self.row(index) for index in range(BLOCK_ROWS)])


class RowMemory:
    """The blocks of one rank."""

    def __init__(self, rank: int = 0, world_size: int = 1) -> None:
        self.rank, self.world_size = rank, world_size
        self.blocks: dict[int, _Block] = {}

    def owner(self, row: int) -> int:
        """The rank that has a row."""
        return row // BLOCK_ROWS % self.world_size

    def read(self, row: int, size: int) -> np.ndarray:
        """Records uint16 (size,) of a row that this rank owns: 0 where it was never seen.

        Raises:
            ValueError: The row was seen with another number of response tokens.
        """
        number, index = divmod(row, BLOCK_ROWS)
        block = self.blocks.get(number)
        if block is None or not block.sizes[index]:
            return np.zeros(size, np.uint16)
        _check_size(row, int(block.sizes[index]), size)
        return block.row(index)

    def write(self, shown: Sequence[tuple[int, int, int | np.ndarray, np.ndarray, np.ndarray]]) -> None:
        """Observes tokens of rows that this rank owns, in order; a row may come more than once.

        Args:
            shown: Row, its response tokens, bin of the level, of all or of each (R,), places int (R,) in the row,
                residuals float32 (R,) in nats beyond the table.

        Raises:
            ValueError: A row was seen with another number of response tokens.
        """
        rounds, times = defaultdict[int, list[Any]](list), Counter[int]()
        for one in shown:
            self._make_room(one[0], one[1])  # of all of them first: a block that grows moves
            rounds[times[one[0]]].append(one)  # a round has each row once, so that all of it is one array
            times[one[0]] += 1
        for of_round in rounds.values():
            numbers, _, bins, places, residuals = zip(*of_round, strict=True)
            rows = [self._row(number) for number in numbers]
            starts = np.cumsum([0, *map(len, rows)])
            at = np.concatenate([start + of_row for start, of_row in zip(starts[:-1], places, strict=True)])
            records = np.concatenate(rows)
            pairs = zip(bins, places, strict=True)
            bin_of_each = np.concatenate([np.broadcast_to(of_row, len(at_row)) for of_row, at_row in pairs])
            before = Records.unpacked(records[at])
            records[at] = before.observed(np.concatenate(residuals), bin_of_each).packed()
            for row, changed in zip(rows, np.split(records, starts[1:-1]), strict=True):
                row[:] = changed

    def _make_room(self, row: int, size: int) -> None:
        number, index = divmod(row, BLOCK_ROWS)
        block = self.blocks.setdefault(number, _Block())
        if not block.sizes[index]:
            block.add(index, size)
        _check_size(row, int(block.sizes[index]), size)

    def _row(self, row: int) -> np.ndarray:
        number, index = divmod(row, BLOCK_ROWS)
        return self.blocks[number].row(index)

    def state(self) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Each block's number, its rows' sizes int32 (BLOCK_ROWS,), and their records uint16 in this order."""
        for number, block in sorted(self.blocks.items()):
            yield number, block.sizes, block.in_order()

    def load_block(self, number: int, sizes: np.ndarray, records: np.ndarray) -> None:
        """Takes a block of a checkpoint.

        Raises:
            ValueError: Its records are not as many as its rows have.
        """
        if sizes.shape != (BLOCK_ROWS,) or sizes.min() < 0 or sizes.sum() != len(records):
            raise ValueError(f"block {number} of the difficulty memory has {len(records)} records of {sizes.sum()}.")
        starts = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int32)
        self.blocks[number] = _Block(starts, sizes.astype(np.int32), records.astype(np.uint16), len(records))

    @property
    def num_bytes(self) -> int:
        """What this rank's blocks take."""
        return sum(each.starts.nbytes + each.sizes.nbytes + each.records.nbytes for each in self.blocks.values())

    @property
    def num_tokens(self) -> int:
        """Tokens of the rows that were seen."""
        return sum(each.num_used for each in self.blocks.values())


def doubt(size: int, num_kept: int, counts: np.ndarray) -> float:
    """See the head: of a superset of `size` tokens, int64 (R,) observations of each."""
    if not 0 < num_kept < size:
        return 0.0
    return float(num_kept * (1 - num_kept / size) * (1 + 1 / (1 + counts.mean())))


def _check_size(row: int, known: int, size: int) -> None:
    if known != size:
        raise ValueError(
            f"row {row} had {known} response tokens in the difficulty memory and has {size}: the data, the chat "
            "template or the tokenizer changed. Start a new run from the checkpoint's weights."
        )
