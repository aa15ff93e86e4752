"""Held-out cross-entropy on a fixed grid of levels with fixed masks, also by how often a token occurs.

The same rows, levels and masks for every method and every step, so that the number compares runs whose training losses
do not compare. Fillers are masked like the rest but not counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lift_ds.data.batch import Document, MicroBatch, Noise, collate
from lift_ds.method.noise import superset_mask
from lift_ds.models.head import MaskedDiffusionModel, masked_gold_logprob
from lift_ds.ranks.shares import Ranks, equal_share
from lift_ds.rng import Stream, keyed_uniform

from .frequency import frequency_class, token_counts

LEVELS = (0.15, 0.35, 0.5, 0.65, 0.85)


@dataclass(frozen=True)
class HeldoutLoss:
    """Cross-entropy in nats per masked token, by level of `LEVELS` and frequency class of the token, over all ranks.

    Args:
        nll: float64 (levels, classes), summed -log p(gold).
        num_tokens: float64 (levels, classes), masked tokens.
    """

    nll: Tensor
    num_tokens: Tensor

    @property
    def by_level(self) -> tuple[float, ...]:
        """By level of `LEVELS`; NaN where none was masked."""
        return tuple((self.nll.sum(1) / self.num_tokens.sum(1)).tolist())

    @property
    def mean(self) -> float:
        """Mean of the levels at which something was masked."""
        return float(torch.tensor(self.by_level, dtype=torch.float64).nanmean())

    @property
    def by_frequency(self) -> tuple[float, ...]:
        """By class, over the masked tokens of all levels; NaN for a class without any."""
        return tuple((self.nll.sum(0) / self.num_tokens.sum(0)).tolist())

    @property
    def by_level_and_frequency(self) -> list[list[float]]:
        """By level, and there by class; NaN where none was masked."""
        return (self.nll / self.num_tokens).tolist()


def heldout_loss(
    model: MaskedDiffusionModel, documents: Sequence[Document], ranks: Ranks, batch_size: int, seed: int
) -> HeldoutLoss:
    """Measures a model; every rank runs the same number of forwards.

    Args:
        model: In eval mode.
        documents: All held-out documents, the same list on every rank.
        ranks: The run.
        batch_size: Documents of one forward.
        seed: Seed of the masks.
    """
    mine = equal_share(longest_first(documents), ranks)
    classes = frequency_class(token_counts(documents))
    num_classes = int(classes.max()) + 1 if len(classes) else 0
    sums = torch.zeros(2, len(LEVELS), num_classes, dtype=torch.float64)
    for start in range(0, len(mine), batch_size):
        share = mine[start : start + batch_size]
        counts = torch.tensor([is_counted for _, is_counted in share])
        batch = collate([document for document, _ in share], [fixed_noise(document, seed) for document, _ in share], 0)
        batch, counts = batch.to(ranks.device), counts.to(ranks.device)
        for index, level in enumerate(LEVELS):
            nll, gold_ids = masked_nll(model, batch, level, counts)
            sums[:, index].index_add_(1, classes[gold_ids], torch.stack([nll, torch.ones_like(nll)]))
    return HeldoutLoss(*ranks.all_reduce(sums))


def longest_first(documents: Sequence[Document]) -> list[Document]:
    """Documents by length, so that those of a batch need little padding; an order of their own, whatever the list's."""
    return sorted(documents, key=lambda document: (-len(document.ids), document.sample_id))


def fixed_noise(document: Document, seed: int) -> Noise:
    """The mask uniforms of one held-out document; its level comes from the grid."""
    uniform = keyed_uniform(seed, 0, document.sample_id, Stream.EVALUATION, len(document.ids))
    return Noise(t=1.0, rho=0.0, component=0, uniforms=np.stack([uniform, uniform]))


def masked_at(model: MaskedDiffusionModel, batch: MicroBatch, level: float) -> tuple[Tensor, Tensor]:
    """What is masked at one level: bool (B, L), and the input ids (B, L) with it."""
    t = torch.full_like(batch.t, level)
    masked = superset_mask(batch.mask_uniform, batch.response_mask, t, torch.zeros_like(t))
    return masked, batch.clean_ids.masked_fill(masked, model.config.mask_token_id)


@torch.no_grad()
def masked_nll(model: MaskedDiffusionModel, batch: MicroBatch, level: float, counts: Tensor) -> tuple[Tensor, Tensor]:
    """float64 (R,) -log p and int64 (R,) gold ids of the R masked, counted tokens at one level, on the CPU."""
    masked, noised_ids = masked_at(model, batch, level)
    counted = masked & ~batch.filler_mask & counts[:, None]
    logprob = masked_gold_logprob(model, noised_ids, counted, batch.clean_ids, batch.attention_mask)
    return -logprob.double().cpu(), batch.clean_ids[counted].cpu()
