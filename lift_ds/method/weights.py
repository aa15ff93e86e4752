"""Weights of single tokens, and curves through which a token's loss goes.

    CART    w_n = 1/2 sum_{j visible} p (1-p)^(|n-j|-1)          tokens near visible context count more
    MGDM    loss_n = alpha (1 - exp(-nll_n))^gamma nll_n          tokens that are predicted badly count more
    PAPL    w_n = 1 + alpha softmax_n(log p(gold_n) / tau)        tokens that would be decoded next count more

Shapes: B sequences, L tokens. Sources: CART of Dream (arXiv 2508.15487); token reweighting of MGDM (Ye et al., arXiv
2410.14157); planner-aware path learning (Peng et al., arXiv 2509.23405), from the paper's formula, without its code at
hand. Differs: CART is a convolution; the public code builds an L x L matrix in every step.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

SMALLEST_KERNEL = 1e-12
Curve = Callable[[Tensor], tuple[Tensor, Tensor]]


def cart_weights(masked: Tensor, p: float, visible: Tensor | None = None) -> Tensor:
    """CART weights of masked tokens.

    Args:
        masked: bool (B, L), masked positions.
        p: Parameter of the geometric kernel, in (0, 1]; LIFT's code uses 0.1.
        visible: bool (B, L), positions that lend context; all that are not masked where not given.

    Returns:
        float32 (B, L); 0 where nothing is masked.

    Raises:
        ValueError: `p` is outside (0, 1].
    """
    if not 0 < p <= 1:
        raise ValueError(f"p={p}: CART's kernel needs 0 < p <= 1.")
    reach = masked.shape[1] - 1
    if p < 1:
        reach = min(reach, math.ceil(math.log(SMALLEST_KERNEL) / math.log1p(-p)))
    distance = torch.arange(-reach, reach + 1, device=masked.device).abs()
    kernel = 0.5 * p * (1 - p) ** (distance - 1).clamp(min=0).float()
    kernel[reach] = 0.0  # a token is no context of its own
    context = (~masked if visible is None else visible & ~masked).float()
    return F.conv1d(context[:, None], kernel[None, None], padding=reach)[:, 0] * masked


@torch.no_grad()
def papl_weights(gold_logprob: Tensor, learned: Tensor, alpha: float, tau: float) -> Tensor:
    """PAPL weights of the tokens that are learned; constants, as the paper has them.

    Args:
        gold_logprob: (B, L) the model's log p(gold) as it learns them.
        learned: bool (B, L); the softmax is over those of a sequence.
        alpha: How much more the whole of a sequence counts; 0 changes nothing.
        tau: Temperature; small ones leave the surest token alone.

    Returns:
        float32 (B, L); 1 where nothing is learned.
    """
    logits = (gold_logprob.float() / tau).masked_fill(~learned, -torch.inf)
    return 1 + alpha * logits.softmax(-1).masked_fill(~learned, 0.0)


def mgdm_curve(alpha: float, gamma: float) -> Curve:
    """The curve nll -> (loss, d loss / d nll), both (R,)."""

    def curve(nll: Tensor) -> tuple[Tensor, Tensor]:
        wrong = -torch.expm1(-nll)  # 1 - p(gold)
        base = alpha * wrong**gamma
        slope = alpha * gamma * wrong.clamp(min=1e-12) ** (gamma - 1) * torch.exp(-nll) * nll
        return base * nll, base + slope

    return curve
