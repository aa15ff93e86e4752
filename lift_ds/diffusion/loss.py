"""The masked-diffusion loss.

    loss = sum_{b, i kept} w_{b,i} * -log p(clean_{b,i}) / t_b  /  N

N is the normaliser of the whole optimizer step (see `training.step`). Source: LLaDA eq. 5.
Differs: the public code divides by the tokens of one micro-batch, so that its gradient depends on the split.
"""

from __future__ import annotations

import torch
from torch import Tensor


def gold_logprob(logits: Tensor, gold_ids: Tensor) -> Tensor:
    """Log p(gold) in float32.

    Args:
        logits: (R, V) logits of R rows, any float type.
        gold_ids: (R,) true token ids.

    Returns:
        (R,) float32, at most 0.
    """
    wide = logits.float()
    return wide.gather(-1, gold_ids[:, None])[:, 0] - torch.logsumexp(wide, dim=-1)


def weighted_nll(token_nll: Tensor, weights: Tensor, num_targets: float | Tensor) -> Tensor:
    """sum(weights * token_nll) / num_targets.

    Args:
        token_nll: (R,) float32 negative log-likelihoods of the kept tokens.
        weights: (R,) or broadcastable weights.
        num_targets: The normaliser N, positive.

    Returns:
        A scalar; 0, and still attached to the graph, where R = 0.
    """
    return (token_nll * weights).sum() / num_targets
