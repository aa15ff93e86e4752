"""GIFT: tokens of which the model is unsure are masked more often.

    beta_i = sqrt(entropy_i)                              one pass without gradient, the whole response masked
    t_i = 1 - (1 - t)^(beta_i / mean beta)                mean over the response of a document or block
    mask_i = [U_i < t_i],     loss = sum_{i masked} CE_i / t_i  /  N

Source: GIFT (arXiv 2509.20863) and LIFT's public code. Differs: that code takes the mean over a whole micro-batch, so
that how a step is cut changes its masks (`gift_loss` can do the same), and returns NaN at entropy 0; t_i is at least
`SMALLEST_LEVEL` here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lift_ds.data.batch import MicroBatch

from .objective import SMALLEST_LEVEL, Candidates, Choice, Objective, ScoringPass
from .settings import ScoredSettings


def gift_levels(entropy: Tensor, response_mask: Tensor, t: Tensor, over_batch: bool = False) -> Tensor:
    """Mask probabilities t_i of tokens.

    Args:
        entropy: (B, L) in nats, at least 0.
        response_mask: bool (B, L).
        t: (B,) levels in (0, 1].
        over_batch: Take the mean over all responses, as the public code does, instead of each document's own.

    Returns:
        float32 (B, L) in [SMALLEST_LEVEL, 1]; t itself where all of a response has entropy 0.
    """
    beta = entropy.clamp(min=0).sqrt() * response_mask
    dim = (0, 1) if over_batch else (1,)
    mean = beta.sum(dim, keepdim=True) / response_mask.sum(dim, keepdim=True).clamp(min=1)
    exponent = torch.where(mean > 0, beta / mean.clamp(min=torch.finfo(beta.dtype).tiny), torch.ones_like(beta))
    return (1 - (1 - t[:, None]) ** exponent).clamp(min=SMALLEST_LEVEL, max=1.0)


class Gift(Objective):
    """Masks drawn by entropy; their number is known only after the pass that measures it."""

    settings_type = ScoredSettings
    scoring_pass: ScoringPass = "entropy"
    observes_targets = False  # its masks follow the model's entropy

    def noise(self, batch: MicroBatch) -> Candidates:
        """The whole response of every document."""
        nothing = torch.zeros_like(batch.response_mask)
        return Candidates(batch.response_mask, nothing, torch.arange(len(nothing), device=nothing.device))

    def choose(self, batch: MicroBatch, candidates: Candidates, scores: Tensor | None) -> Choice:
        """The tokens whose uniform lies below their own level."""
        assert scores is not None
        levels = batch.of_spans(gift_levels(batch.spans(scores), batch.spans(batch.response_mask), batch.t))
        return Choice(batch.response_mask & (batch.mask_uniform < levels), levels)

    def num_targets(self, batch: MicroBatch) -> None:
        """Not known before the pass."""
        return None
