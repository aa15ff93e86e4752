"""What the passes of a step showed of rows, as the difficulty memory takes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lift_ds.data.batch import MicroBatch
from lift_ds.method.difficulty import level_bin

from .results import Observed

SHOWN = np.dtype([("row", "i8"), *((name, "i4") for name in ("slot", "index", "turn", "size", "count", "bin"))])


@dataclass(frozen=True)
class Shown:
    """What the passes of one step showed on this rank.

    Args:
        documents: `SHOWN` (D,): row, slot, index in its pack, which pass, response tokens, how many shown, and the
            first one's level bin, which is in checkpoints and not read: blocks have levels of their own.
        places: int32 (R,), places of the tokens shown, document after document.
        token_ids: int64 (R,), levels: float32 (R,), nll: float32 (R,).
        for_table: bool (R,), whether the table may learn of them.
    """

    documents: np.ndarray
    places: np.ndarray
    token_ids: np.ndarray
    levels: np.ndarray
    nll: np.ndarray
    for_table: np.ndarray

    @staticmethod
    def of(passes: Sequence[tuple[MicroBatch, Observed]]) -> Shown:
        """Of micro-batches and what each of their passes showed, in order."""
        parts, last, turn = [nothing_shown()], None, 0
        for batch, observed in passes:
            turn = turn + 1 if batch is last else 0
            last = batch
            parts.append(_of_pass(batch, observed, turn))
        return Shown(*(np.concatenate(column) for column in zip(*(part.columns() for part in parts), strict=True)))

    def columns(self) -> tuple[np.ndarray, ...]:
        """All fields."""
        return self.documents, self.places, self.token_ids, self.levels, self.nll, self.for_table


def nothing_shown() -> Shown:
    """By no pass."""
    floats = np.zeros(0, np.float32)
    return Shown(np.zeros(0, SHOWN), np.zeros(0, np.int32), np.zeros(0, np.int64), floats, floats, np.zeros(0, bool))


def _of_pass(batch: MicroBatch, observed: Observed, turn: int) -> Shown:
    kept = observed.of(~observed.is_filler)
    learnable = batch.response_mask & ~batch.filler_mask
    place, sizes = learnable.cumsum(-1) - 1, learnable.sum(-1)
    document = kept.at // batch.clean_ids.shape[1]
    is_real = torch.tensor(batch.sample_ids)[document] >= 0
    kept, document = kept.of(is_real), document[is_real]
    rows, counts = document.unique_consecutive(return_counts=True)  # ascending: positions are in row-major order
    first = counts.cumsum(0) - counts
    documents = np.zeros(len(rows), SHOWN)
    documents["row"] = np.array(batch.sample_ids)[rows.numpy()]
    documents["slot"], documents["index"] = np.array(batch.slots)[rows.numpy()].reshape(-1, 2).T
    documents["turn"], documents["size"], documents["count"] = turn, sizes[rows].numpy(), counts.numpy()
    documents["bin"] = level_bin(kept.levels[first]).numpy()
    places = place.flatten()[kept.at].numpy().astype(np.int32)
    columns = (kept.token_ids, kept.levels, kept.nll, ~kept.is_chosen)
    return Shown(documents, places, *(column.numpy() for column in columns))
