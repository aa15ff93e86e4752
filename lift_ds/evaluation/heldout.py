"""Held-out cross-entropy on a fixed grid of levels with fixed masks, also by how often a token occurs.

The same rows, levels and masks for every method and every step, so that the number compares runs whose training losses
do not compare. Fillers are masked like the rest but not counted.

A token's class is how often it occurs in the measured responses, between two powers of two. That counts what is
measured, not what was trained on, so that it is the same for every method, step and number of ranks; measures of other
rows have other classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lift_ds.data.batch import Document, MicroBatch, Noise, collate
from lift_ds.method.noise import superset_mask
from lift_ds.models.head import MaskedDiffusionModel, masked_gold_logprob
from lift_ds.ranks.shares import Ranks, equal_share
from lift_ds.rng import Stream, keyed_uniform

LEVELS = (0.15, 0.35, 0.5, 0.65, 0.85)


@dataclass(frozen=True)
class HeldoutLoss:
    """Cross-entropy in nats per masked token, by level of `LEVELS` and frequency class of the token, over all ranks.

    It is kept as summed -log p(gold) and the number of masked tokens, both float64 (levels, classes).
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


@torch.no_grad()
def heldout_loss(
    model: MaskedDiffusionModel, documents: Sequence[Document], ranks: Ranks, batch_size: int, seed: int
) -> HeldoutLoss:
    """Measures a model in eval mode on documents, the same list on every rank, which all run as many forwards."""
    classes = frequency_class(token_counts(documents))
    num_classes = int(classes.max()) + 1 if len(classes) else 0
    sums = torch.zeros(2, len(LEVELS), num_classes, dtype=torch.float64)
    mine = equal_share(longest_first(documents), ranks)
    for index, batch, noised_ids, counted in masked_batches(model, mine, LEVELS, ranks.device, batch_size, seed):
        logprob = masked_gold_logprob(model, noised_ids, counted, batch.clean_ids, batch.visible)
        nll, gold_ids = -logprob.double().cpu(), batch.clean_ids[counted].cpu()
        sums[:, index].index_add_(1, classes[gold_ids], torch.stack([nll, torch.ones_like(nll)]))
    return HeldoutLoss(*ranks.all_reduce(sums))


def longest_first(documents: Sequence[Document]) -> list[Document]:
    """Documents by length, so that those of a batch need little padding; an order of their own, whatever the list's."""
    return sorted(documents, key=lambda document: (-len(document.ids), document.sample_id))


def masked_batches(
    model: MaskedDiffusionModel,
    documents: Sequence[tuple[Document, bool]],
    levels: Sequence[float],
    device: torch.device,
    batch_size: int,
    seed: int,
) -> Iterator[tuple[int, MicroBatch, Tensor, Tensor]]:
    """Each batch at each level with its fixed masks: the level's place, the batch, and two tensors.

    The tensors are the masked input ids (B, L), and bool (B, L) what of it counts: documents say whether they do.
    """
    for start in range(0, len(documents), batch_size):
        share = documents[start : start + batch_size]
        counts = torch.tensor([is_counted for _, is_counted in share], device=device)
        noises = [fixed_noise(document, seed) for document, _ in share]
        batch = collate([document for document, _ in share], noises, 0).to(device)
        for index, level in enumerate(levels):
            t = torch.full_like(batch.t, level)
            masked = superset_mask(batch.mask_uniform, batch.response_mask, t, torch.zeros_like(t))
            noised_ids = batch.clean_ids.masked_fill(masked, model.config.mask_token_id)
            yield index, batch, noised_ids, masked & ~batch.filler_mask & counts[:, None]


def fixed_noise(document: Document, seed: int) -> Noise:
    """The mask uniforms of one held-out document; its level comes from the grid."""
    uniform = keyed_uniform(seed, 0, document.sample_id, Stream.EVALUATION, len(document.ids))
    return Noise(t=1.0, rho=0.0, component=0, uniforms=np.stack([uniform, uniform]))


def token_counts(documents: Iterable[Document], num_ids: int = 0) -> Tensor:
    """Occurrences in the responses, fillers not counted: int64 (V,), up to the highest id, and at least `num_ids`."""
    learned = [document.ids[document.response_mask & ~document.filler_mask] for document in documents]
    joined = np.concatenate(learned) if learned else np.zeros(0, dtype=np.int64)
    return torch.bincount(torch.from_numpy(joined), minlength=num_ids)


def frequency_class(counts: Tensor) -> Tensor:
    """int64 (V,): floor(log2(count)) of each token; -1 where it does not occur."""
    return torch.where(counts > 0, counts.clamp(min=1).double().log2().floor().long(), -1)


def class_label(number: int) -> str:
    """`8-15` for class 3."""
    low, high = 2**number, 2 ** (number + 1) - 1
    return str(low) if low == high else f"{low:,}-{high:,}"
