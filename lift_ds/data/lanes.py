"""The order of samples: a pure function of (manifest, seed), whatever the number of ranks.

Each epoch permutes the chunks, groups them into windows and permutes the rows of each window. Windows are dealt in turn
to V lanes: virtual streams, endless and deterministic. Slot j of step s (of G slots) takes the next sample of lane
(s G + j) mod V. Where an epoch has fewer windows than lanes, each window is cut into equal parts first, so that every
lane has its share of every epoch. Slots, not lanes, are dealt to ranks: any number of ranks reads the same samples.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np

from lift_ds.rng import Stream, keyed_generator

from .sources import Manifest


@dataclass(frozen=True)
class SampleRef:
    """A sample before it is read."""

    epoch: int
    chunk_index: int
    row: int
    sample_id: int


class Lanes:
    """V cursors over the endless sequence of window parts.

    Args:
        manifest: The rows.
        held_out: Sample ids that training never sees.
        num_lanes: V; part of the order's identity.
        window_chunks: Chunks per window.
        seed: The run's seed.
    """

    def __init__(self, manifest: Manifest, held_out: set[int], num_lanes: int, window_chunks: int, seed: int) -> None:
        """Starts every lane at its first part."""
        self.manifest = manifest
        self.held_out = np.array(sorted(held_out), dtype=np.int64)
        self.num_lanes, self.window_chunks, self.seed = num_lanes, window_chunks, seed
        self.num_windows = math.ceil(len(manifest.chunks) / window_chunks)
        self.parts_per_window = math.ceil(num_lanes / self.num_windows)
        self.cursors = [(lane, 0) for lane in range(num_lanes)]
        self._windows: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()
        if manifest.num_rows <= len(held_out):
            raise ValueError(f"all {manifest.num_rows} rows are held out; lower eval.rows or add data.")

    def next(self, lane: int) -> SampleRef:
        """The lane's next sample; the lane moves on."""
        part, offset = self.cursors[lane]
        while offset >= len(rows := self.part_rows(part)):
            part, offset = part + self.num_lanes, 0
        self.cursors[lane] = (part, offset + 1)
        sample_id = int(rows[offset])
        chunk_index = bisect_right(self.manifest.first_ids, sample_id) - 1
        epoch = part // (self.num_windows * self.parts_per_window)
        return SampleRef(epoch, chunk_index, sample_id - self.manifest.first_ids[chunk_index], sample_id)

    def part_rows(self, part: int) -> np.ndarray:
        """Sample ids of one part, counted over all epochs.

        Pieces of a window differ by a row; they rotate, so that no lane gets the short (or empty) ones every time.
        """
        window, place = divmod(part, self.parts_per_window)
        piece = (place + window) % self.parts_per_window
        rows = self.window_rows(*divmod(window, self.num_windows))
        bounds = [len(rows) * edge // self.parts_per_window for edge in (piece, piece + 1)]
        return rows[bounds[0] : bounds[1]]

    def window_rows(self, epoch: int, window: int) -> np.ndarray:
        """Sample ids of one window of one epoch, permuted, without the held-out rows."""
        key = (epoch, window)
        if key not in self._windows:
            order = keyed_generator(self.seed, epoch, 0, Stream.ORDER).permutation(len(self.manifest.chunks))
            chosen = order[window * self.window_chunks : (window + 1) * self.window_chunks]
            first = self.manifest.first_ids
            rows = np.concatenate([np.arange(first[chunk], first[chunk + 1]) for chunk in chosen])
            rows = rows[~np.isin(rows, self.held_out)]
            self._windows[key] = keyed_generator(self.seed, epoch, 1 + window, Stream.ORDER).permutation(rows)
            if len(self._windows) > 2 * self.num_lanes:
                self._windows.popitem(last=False)
        self._windows.move_to_end(key)
        return self._windows[key]

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: each lane's part and offset, and what they mean."""
        return {
            "cursors": [list(cursor) for cursor in self.cursors],
            "window_chunks": self.window_chunks,
            "seed": self.seed,
            "num_held_out": len(self.held_out),
            "manifest": self.manifest.digest,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continues from `state`.

        Raises:
            ValueError: The data, the seed or the lanes are not those of the checkpoint.
        """
        now = self.state()
        changed = [name for name in now if name != "cursors" and state[name] != now[name]]
        if len(state["cursors"]) != self.num_lanes:
            changed.append("number of lanes")
        if changed:
            raise ValueError(
                f"the checkpoint's data position does not fit this run: {', '.join(changed)} changed. "
                "Resume with the same data files, data.lanes, data.window_chunks, eval.rows and seed."
            )
        self.cursors = [(part, offset) for part, offset in state["cursors"]]


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
