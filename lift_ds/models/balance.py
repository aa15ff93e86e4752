"""How evenly a mixture's router deals tokens to its experts, and the loss that evens it out.

    loss = E sum_e f_e P_e      f_e: part of all choices that fell on expert e
                                P_e: mean probability that the router gave to it

1 where both are even, up to E where all tokens go to one expert. Only P has a gradient. What is counted are some of the
tokens that go through a layer together, so that f is that of one micro-batch on one rank.

Shapes: T tokens, K experts a token, E experts, M mixtures.

Source: Switch Transformer (arXiv 2101.03961), equations 4 to 6, for K = 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

NUM_SUMS = 3  # behind the choices of each expert: entropy and loss, times tokens, and tokens


@dataclass(frozen=True, eq=False)
class Counted:
    """What a training pass counts.

    Args:
        tokens: bool (T,), which tokens.
        factor: What the layer's loss is multiplied by in the training loss; `None` where it is not learned.
    """

    tokens: Tensor
    factor: float | None


def balance(probabilities: Tensor, chosen: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """The loss, and what adds up over micro-batches and ranks.

    Args:
        probabilities: float32 (T, E), the router's.
        chosen: int64 (T, K).
        counted: bool (T,).

    Returns:
        The differentiable scalar, 0 where nothing is counted; and float32 (E + 3,): the choices of each expert, then
        the tokens' summed entropy, the loss times their number, and their number.
    """
    ones = counted.to(probabilities.dtype)
    number = ones.sum()
    choices = torch.zeros_like(probabilities[0]).index_add(0, chosen.flatten(), ones.repeat_interleave(chosen.shape[1]))
    mean = ones @ probabilities / number.clamp(min=1)
    loss = len(choices) * (choices / choices.sum().clamp(min=1) * mean).sum()
    with torch.no_grad():
        entropy = ones @ torch.special.entr(probabilities).sum(-1)
        sums = torch.cat([choices, torch.stack([entropy, loss * number, number])])
    return loss, sums


def summary(sums: Tensor) -> dict[str, float | None]:
    """What a step's sums (M, E + 3) say; `None` where nothing was counted."""
    choices, (entropy, loss, number) = sums[:, :-NUM_SUMS], sums[:, -NUM_SUMS:].sum(0).tolist()
    if not number:
        return dict.fromkeys(("expert_load", "experts_without_tokens", "router_entropy", "balance_loss"))
    return {
        "expert_load": float((choices.max(1).values / choices.mean(1)).max()),
        "experts_without_tokens": float((choices == 0).double().mean()),
        "router_entropy": entropy / number,
        "balance_loss": loss / number,
    }


class WithLoss(torch.autograd.Function):
    """Hidden states as they are; backward, the loss gets `factor` as its gradient, as if it were part of the step's.

    So its backward runs inside its layer's, where ZeRO-3 has gathered the weights, computed again or not.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, loss: Tensor, factor: float) -> Tensor:
        """See the class."""
        ctx.factor, ctx.like = factor, loss.detach()
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        """See the class."""
        return gradient, torch.full_like(ctx.like, ctx.factor), None
