"""The order of samples: a pure function of (manifest, seed), whatever the number of ranks.

Each epoch permutes the chunks, groups them into windows and permutes the rows of each window. A window is cut into V
equal parts, one for each lane: virtual streams, endless and deterministic. So all lanes read about the same window,
and memory holds few chunks at a time. Slot j of step s (of G slots) takes from lane (s G + j) mod V. Slots, not lanes,
are dealt to ranks: any number of ranks reads the same samples.

A mixture has one such order for each of its sources; each sample of a lane draws its source by weight, keyed by the
lane and the number of samples that it drew before.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from lift_ds.data.sources import Manifest
from lift_ds.rng import Stream, keyed_generator, keyed_uniform

MAX_IDS = 2_000_000  # of an order's windows that are kept in memory
KEPT_EPOCHS = 4
PART_ROWS = 16  # a lane's part of a window has about so many at least, or windows get more chunks
WINDOW_ROWS = 32_768  # a window of large chunks has about so many at most


@dataclass(frozen=True)
class SampleRef:
    """A sample before it is read."""

    epoch: int
    chunk_index: int
    row: int
    sample_id: int


Position = tuple[list[tuple[int, int]], int]  # cursors of a lane, and samples drawn


def locate(manifest: Manifest, epoch: int, sample_id: int) -> SampleRef:
    """The sample of an id."""
    chunk_index = bisect_right(manifest.first_ids, sample_id) - 1
    return SampleRef(epoch, chunk_index, sample_id - manifest.first_ids[chunk_index], sample_id)


class Order:
    """The endless sequence of windows of some chunks (of a mixture's source), each cut into a part for every lane."""

    def __init__(
        self,
        manifest: Manifest,
        chunks: range,
        number: int,
        held_out: np.ndarray,
        num_lanes: int,
        window_chunks: int,
        seed: int,
    ) -> None:
        self.manifest, self.chunks, self.number, self.held_out = manifest, chunks, number, held_out
        self.num_lanes, self.seed = num_lanes, seed
        first, end = (manifest.first_ids[chunk] for chunk in (chunks.start, chunks.stop))
        self.window_chunks = chunks_per_window(window_chunks, (end - first) / len(chunks), num_lanes)
        self.num_windows = math.ceil(len(chunks) / self.window_chunks)
        self._windows: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()
        self._chunk_orders: OrderedDict[int, np.ndarray] = OrderedDict()
        self._parts: list[tuple[int, np.ndarray]] = [(-1, np.empty(0, np.int64))] * num_lanes
        self.max_windows = max(4, min(2 * num_lanes, MAX_IDS * self.num_windows // max(end - first, 1)))
        if end - first <= np.count_nonzero((held_out >= first) & (held_out < end)):
            raise ValueError(f"all {end - first} rows are held out; lower eval.rows or add data.")

    def next(self, lane: int, window: int, offset: int) -> tuple[SampleRef, tuple[int, int]]:
        """The sample at a lane's cursor (window, offset), and where the lane stands after it."""
        while offset >= len(rows := self.part_rows(lane, window)):
            window, offset = window + 1, 0
        return locate(self.manifest, window // self.num_windows, int(rows[offset])), (window, offset + 1)

    def part_rows(self, lane: int, window: int) -> np.ndarray:
        """Sample ids of a lane's part of one window, counted over all epochs.

        Parts of a window differ by a row; they rotate, so that no lane gets the short (or empty) ones every time.
        """
        kept, rows_of_lane = self._parts[lane]
        if kept != window:
            part = (lane + window) % self.num_lanes
            rows = self._window_rows(*divmod(window, self.num_windows))
            first, end = (len(rows) * edge // self.num_lanes for edge in (part, part + 1))
            rows_of_lane = rows[first:end].copy()  # a view would hold the whole window in memory
            self._parts[lane] = (window, rows_of_lane)
        return rows_of_lane

    def _window_rows(self, epoch: int, window: int) -> np.ndarray:
        """Sample ids of one window, permuted, without the held-out rows."""
        key = (epoch, window)
        if key not in self._windows:
            chosen = self._chunk_order(epoch)[window * self.window_chunks : (window + 1) * self.window_chunks]
            first = self.manifest.first_ids
            rows = np.concatenate([np.arange(first[chunk], first[chunk + 1]) for chunk in chosen])
            rows = rows[~np.isin(rows, self.held_out)]
            stream_number = (self.number << 32) + 1 + window
            self._windows[key] = keyed_generator(self.seed, epoch, stream_number, Stream.ORDER).permutation(rows)
            if len(self._windows) > self.max_windows:
                self._windows.popitem(last=False)
        self._windows.move_to_end(key)
        return self._windows[key]

    def _chunk_order(self, epoch: int) -> np.ndarray:
        if epoch not in self._chunk_orders:
            generator = keyed_generator(self.seed, epoch, self.number << 32, Stream.ORDER)
            self._chunk_orders[epoch] = generator.permutation(len(self.chunks)) + self.chunks.start
            if len(self._chunk_orders) > KEPT_EPOCHS:
                self._chunk_orders.popitem(last=False)
        return self._chunk_orders[epoch]


def chunks_per_window(wanted: int, mean_rows: float, num_lanes: int) -> int:
    """More chunks where they are small, so that every lane has its part; fewer where they are large, for memory."""
    fewest = math.ceil(PART_ROWS * num_lanes / mean_rows)
    return max(1, fewest, min(wanted, int(WINDOW_ROWS // mean_rows)))


class Lanes:
    """V cursors, each into the order of every source of the mixture; all arguments are part of its identity.

    Raises:
        ValueError: All rows of a source are held out.
    """

    def __init__(self, manifest: Manifest, held_out: set[int], num_lanes: int, window_chunks: int, seed: int) -> None:
        self.manifest, self.num_held_out = manifest, len(held_out)
        self.num_lanes, self.window_chunks, self.seed = num_lanes, window_chunks, seed
        weights = [group.weight for group in manifest.groups if group.weight is not None]
        is_mixture = len(weights) > 1
        ranges = [range(group.first_chunk, group.first_chunk + group.num_chunks) for group in manifest.groups]
        ranges = ranges if is_mixture else [range(len(manifest.chunks))]
        ids = np.array(sorted(held_out), dtype=np.int64)
        self.orders = [
            Order(manifest, chunks, number, ids, num_lanes, window_chunks, seed) for number, chunks in enumerate(ranges)
        ]
        self.thresholds = np.cumsum(weights) / np.sum(weights) if is_mixture else np.ones(1)
        self.cursors = [[(0, 0)] * len(self.orders) for _ in range(num_lanes)]
        self.num_drawn = [0] * num_lanes

    @property
    def window_chunks_open(self) -> int:
        """Chunks of two windows of every source: lanes stand in one window or the next."""
        return 2 * sum(order.window_chunks for order in self.orders)

    def next(self, lane: int) -> SampleRef:
        """The lane's next sample; the lane moves on."""
        source = 0
        if len(self.orders) > 1:
            u = keyed_uniform(self.seed, lane, self.num_drawn[lane], Stream.SOURCE, 1)[0]
            source = int(np.searchsorted(self.thresholds[:-1], u, side="right"))
        ref, self.cursors[lane][source] = self.orders[source].next(lane, *self.cursors[lane][source])
        self.num_drawn[lane] += 1
        return ref

    def _position(self, lane: int) -> Position:
        return list(self.cursors[lane]), self.num_drawn[lane]

    def peek(self, lane: int, count: int) -> list[tuple[SampleRef, Position]]:
        """The lane's next samples, and where it stands after each; it stays where it is."""
        before = self._position(lane)
        drawn = [(self.next(lane), self._position(lane)) for _ in range(count)]
        self.move(lane, before)
        return drawn

    def move(self, lane: int, position: Position) -> None:
        """Puts the lane where `peek` found a sample."""
        cursors, self.num_drawn[lane] = position
        self.cursors[lane] = list(cursors)

    def lane_state(self, lane: int) -> dict[str, Any]:
        """What a checkpoint keeps of one lane."""
        return {"cursors": [list(cursor) for cursor in self.cursors[lane]], "num_drawn": self.num_drawn[lane]}

    def load_lane(self, lane: int, state: dict[str, Any]) -> None:
        """Continues one lane from its state."""
        self.move(lane, ([(window, offset) for window, offset in state["cursors"]], state["num_drawn"]))

    def identity(self) -> dict[str, Any]:
        """What must be the same for lane states to mean the same."""
        return {
            "data.lanes": self.num_lanes,
            "data.window_chunks": self.window_chunks,
            "seed": self.seed,
            "rows held out": self.num_held_out,
            "sources": [[group.weight, group.first_chunk, group.num_chunks] for group in self.manifest.groups],
        }


def choose_held_out(manifest: Manifest, num_rows: int, seed: int) -> set[int]:
    """`num_rows` sample ids, drawn once from (seed, manifest); the same on every rank.

    Raises:
        ValueError: The manifest has no more rows than that.
    """
    if num_rows >= manifest.num_rows:
        raise ValueError(
            f"eval.rows={num_rows}: the data has {manifest.num_rows} rows, and some must remain to train on; "
            "lower eval.rows or name other rows in eval.path."
        )
    generator = keyed_generator(seed, 0, 0, Stream.EVALUATION)
    return set(generator.choice(manifest.num_rows, size=num_rows, replace=False).tolist())


@dataclass(frozen=True)
class SlotPlan:
    """Which lane each slot of a step takes from, and which slots this rank reads.

    Slot j of step s is number s G + j of all slots; it takes from lane (number mod V) and is read by rank (number mod
    N). Where N divides V, a lane belongs to one rank only.

    Args:
        follows_all: Whether this rank moves on the lanes of slots that are not its own.
    """

    global_batch: int
    num_lanes: int
    rank: int
    world_size: int
    follows_all: bool

    def reader(self, step: int, slot: int) -> int:
        """The rank that reads a slot; `exchange` says which one computes it."""
        return (step * self.global_batch + slot) % self.world_size

    def slots(self, step: int) -> Iterator[tuple[int, int, bool]]:
        """(slot, lane, whether it is this rank's) of a step's slots that this rank takes or follows."""
        for slot in range(self.global_batch):
            number = step * self.global_batch + slot
            is_own = self.reader(step, slot) == self.rank
            if is_own or self.follows_all:
                yield slot, number % self.num_lanes, is_own
