"""Learnability: how surely a model predicts common and rare tokens at each mask level (the paper's figure).

For every masked response token: the confidence max_v p(v) and p(gold), summed by token id and level, and from there by
frequency class (see `heldout`).

Source: LIFT (arXiv 2605.22939), learnability figure. Differs: p(gold), by which LIFT ranks, stands beside the
confidence, which is all that the public code logs; counts and intervals are given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from lift_ds.data.batch import Document
from lift_ds.method.loss import chunked_confidence
from lift_ds.models.head import MaskedDiffusionModel
from lift_ds.models.registry import refuse_blockwise

from .heldout import frequency_class, longest_first, masked_batches, token_counts

LEVELS = (0.1, 0.25, 0.4, 0.5, 0.6, 0.7071, 0.8409, 0.95)
Z_95 = 1.96


@dataclass(frozen=True)
class Cell:
    """One frequency class at one level: masked tokens, means over them of the largest probability and of p(gold).

    `interval` is half the width of the 95 % interval of `gold` (normal, tokens taken as independent). What was not
    measured is NaN.
    """

    num_tokens: int
    confidence: float
    gold: float
    interval: float


@dataclass(frozen=True)
class Learnability:
    """Sums over masked tokens, float64 (V, levels); NaN where they were not measured.

    `frequency`, int64 (V,), is how often a token occurs in the measured responses.
    """

    frequency: Tensor
    counts: Tensor
    confidence: Tensor
    gold: Tensor
    gold_squares: Tensor
    levels: tuple[float, ...] = LEVELS

    def cells(self) -> dict[int, list[Cell]]:
        """By frequency class, ascending: a cell for each of `levels`."""
        classes = frequency_class(self.frequency)
        return {
            int(frequency_class): [self.cell(classes == frequency_class, index) for index in range(len(self.levels))]
            for frequency_class in classes[classes >= 0].unique()
        }

    def cell(self, tokens: Tensor, level: int) -> Cell:
        """Means over some tokens (V,) bool at one level; NaN where none was masked."""
        count, confidence, gold, squares = (
            float(sums[tokens, level].sum()) for sums in (self.counts, self.confidence, self.gold, self.gold_squares)
        )
        if count == 0:
            return Cell(0, float("nan"), float("nan"), float("nan"))
        mean = gold / count
        deviation = max(squares / count - mean**2, 0.0) ** 0.5  # NaN stays NaN: nothing is larger
        return Cell(round(count), confidence / count, mean, Z_95 * deviation / count**0.5)

    def token_gold(self) -> Tensor:
        """Mean p(gold) of each token over all levels (V,); NaN where it was never masked."""
        return self.gold.sum(-1) / self.counts.sum(-1)


def from_difficulty(sums: Tensor, counts: Tensor) -> Learnability:
    """What a difficulty table shows of the model that filled it, at the middle of each of its level bins.

    It holds decayed sums of -log p(gold) and counts, both (V, bins): p(gold) is a geometric mean of each (token, level)
    pair here, confidence and intervals are not known. A token's frequency is its decayed number of observations.
    """
    sums, counts = sums.double(), counts.double()
    gold = counts * torch.exp(-sums / counts.clamp(min=1e-12))
    unknown = torch.full_like(gold, torch.nan)
    levels = tuple((index + 0.5) / counts.shape[1] for index in range(counts.shape[1]))
    return Learnability(counts.sum(-1).round().long(), counts, unknown, gold, unknown, levels)


@torch.no_grad()
def measure(model: MaskedDiffusionModel, documents: Sequence[Document], batch_size: int, seed: int) -> Learnability:
    """Measures a model in eval mode on documents with fixed masks; fillers are masked like the rest but not counted.

    Raises:
        ValueError: There are no documents, or the model denoises block after block.
    """
    refuse_blockwise(model.config, "what it knows at a level of a whole document is not measured.")
    if not documents:
        raise ValueError("nothing to measure: no documents.")
    matrix = model.get_input_embeddings().weight
    shape = (matrix.shape[0], len(LEVELS))
    sums = torch.zeros(4, *shape, dtype=torch.float64)
    counting = [(document, True) for document in longest_first(documents)]
    for index, batch, noised_ids, rows in masked_batches(model, counting, LEVELS, matrix.device, batch_size, seed):
        gold_ids = batch.clean_ids[rows]
        hidden = model.encode(noised_ids, batch.visible)[rows]
        shown = model.head(hidden, partial(chunked_confidence, gold_ids=gold_ids))
        confidence, gold = shown.double().cpu().unbind(1)
        columns = torch.stack((torch.ones_like(gold), confidence, gold, gold**2))
        sums[..., index].index_add_(1, gold_ids.cpu(), columns)
    return Learnability(token_counts(documents, shape[0]), *sums)
