"""Losses of given masks, as plain functions of a model: what the trainer computes, for use without it.

Shapes: B documents, L tokens.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from lift_ds.method.loss import chunked_entropy, chunked_weighted_nll
from lift_ds.models.head import MaskedDiffusionModel

from .gift import gift_levels


def sft_loss(
    model: MaskedDiffusionModel,
    clean_ids: Tensor,
    kept: Tensor,
    t: Tensor,
    num_targets: float | Tensor,
    time_scaling: bool = True,
    weights: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> Tensor:
    """Masked-diffusion loss of given masks: sum over kept of weights * CE / t, divided by `num_targets`.

    Args:
        model: A model from `load_pretrained`.
        clean_ids: int64 (B, L) true ids.
        kept: bool (B, L), the positions that are masked in the input and learned.
        t: (B,) levels in (0, 1].
        num_targets: The normaliser.
        time_scaling: Whether to divide by t.
        weights: (B, L) weights of single tokens.
        attention_mask: bool (B, L), false on padding.

    Returns:
        A differentiable scalar; 0 where nothing is kept.

    Raises:
        ValueError: A level is outside (0, 1].
    """
    check_levels(t)
    noised_ids = clean_ids.masked_fill(kept, model.config.mask_token_id)
    rows = model.encode(noised_ids, attention_mask)[kept]
    token_weights = (1.0 / t if time_scaling else torch.ones_like(t))[:, None].expand_as(clean_ids)
    token_weights = token_weights if weights is None else token_weights * weights
    gold_ids, row_weights = clean_ids[kept], token_weights[kept]
    loss, _ = model.head(rows, partial(chunked_weighted_nll, gold_ids=gold_ids, row_weights=row_weights))
    return loss / num_targets


def gift_loss(
    model: MaskedDiffusionModel,
    clean_ids: Tensor,
    response_mask: Tensor,
    t: Tensor,
    uniform: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """GIFT's loss of one batch, as the public code computes it; see `gift`, which the trainer uses.

    Sum over masked of CE / t_i, divided by the number masked. The mean entropy is taken over the batch.

    Args:
        model: A model from `load_pretrained`.
        clean_ids: int64 (B, L) true ids.
        response_mask: bool (B, L), the positions that may be masked.
        t: (B,) levels in (0, 1].
        uniform: (B, L) uniforms in [0, 1) that decide the mask; drawn where not given.
        generator: Source of those draws.

    Returns:
        A differentiable scalar; 0 where nothing is masked.

    Raises:
        ValueError: A level is outside (0, 1].
    """
    check_levels(t)
    if uniform is None:
        uniform = torch.rand(clean_ids.shape, generator=generator, device=clean_ids.device)
    with torch.no_grad():
        hidden = model.encode(clean_ids.masked_fill(response_mask, model.config.mask_token_id))[response_mask]
        entropy = torch.zeros_like(uniform)
        entropy[response_mask] = model.head(hidden, chunked_entropy)
    levels = gift_levels(entropy, response_mask, t, over_batch=True)
    masked = response_mask & (uniform < levels)
    every_level = torch.ones_like(t)
    return sft_loss(model, clean_ids, masked, every_level, masked.sum().clamp(min=1), weights=1.0 / levels)


def check_levels(t: Tensor) -> None:
    """Checks that levels lie in (0, 1]."""
    if not bool(((t > 0) & (t <= 1)).all()):
        raise ValueError(f"t={t.tolist()}: levels must lie in (0, 1]; 1 is fully masked.")
