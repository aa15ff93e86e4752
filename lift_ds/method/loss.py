"""The weighted cross-entropy of a vocabulary matrix, without ever holding all logits.

    loss = sum_r w_r c(nll_r),      nll_r = logsumexp_v(h_r . W_v) - h_r . W_{gold_r},      c: a curve, or nothing

Rows go through the matrix in chunks. The softmax of a chunk gives its loss and, at once, its share of both gradients:

    dh_r = w_r c' (softmax_r W - W_{gold_r})          dW = sum_r w_r c' (softmax_r - onehot_r)^T h_r

Where nll_r is not finite both gradients are NaN, so that no such step is ever applied.
Nothing is recomputed in backward, which only scales, in place, what was kept: (R, D) and, where W is trained, (V, D).

Models that only give logits are served too: without a matrix, the rows are their own logits, and D is V.

Shapes: R rows, D width, V vocabulary. Memory beyond that: a chunk's `CHUNK_LOGITS` logits in float32 (and once more in
the matrix's type, where that is another one). Differs: the public code holds the logits of all positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .weights import Curve

CHUNK_LOGITS = 1 << 25


@torch.no_grad()
def chunked_gold_logprob(hidden: Tensor, weight: Tensor | None, gold_ids: Tensor) -> Tensor:
    """Log p(gold) of rows, at most 0, without gradient: float32 (R,).

    Args:
        hidden: (R, D) hidden states.
        weight: (V, D) vocabulary matrix; without it `hidden` holds logits.
        gold_ids: int64 (R,) true ids.
    """
    gold_logprob = hidden.new_empty(hidden.shape[0], dtype=torch.float32)
    for rows, logits in chunked_logits(hidden, weight):
        gold_logprob[rows] = logits.gather(-1, gold_ids[rows, None])[:, 0] - logits.logsumexp(-1)
    return gold_logprob


@torch.no_grad()
def chunked_confidence(hidden: Tensor, weight: Tensor | None, gold_ids: Tensor) -> Tensor:
    """Largest probability and p(gold) of each row, without gradient: float32 (R, 2); arguments as above."""
    confidence = hidden.new_empty((hidden.shape[0], 2), dtype=torch.float32)
    for rows, logits in chunked_logits(hidden, weight):
        probability = logits.softmax(-1)
        confidence[rows, 0] = probability.amax(-1)
        confidence[rows, 1] = probability.gather(-1, gold_ids[rows, None])[:, 0]
    return confidence


@torch.no_grad()
def chunked_entropy(hidden: Tensor, weight: Tensor | None) -> Tensor:
    """Entropy in nats of the predicted distributions, without gradient: float32 (R,); arguments as above."""
    entropy = hidden.new_empty(hidden.shape[0], dtype=torch.float32)
    for rows, logits in chunked_logits(hidden, weight):
        logprob = logits.log_softmax(-1)
        entropy[rows] = -(logprob.exp() * logprob).sum(-1)
    return entropy.clamp(min=0.0)


def chunked_weighted_nll(
    hidden: Tensor, weight: Tensor | None, gold_ids: Tensor, row_weights: Tensor, curve: Curve | None = None
) -> tuple[Tensor, Tensor]:
    """The weighted loss of rows, differentiable in `hidden` and `weight`, which are of the same type.

    Args:
        hidden: As above, like the next two.
        weight: (V, D).
        gold_ids: (R,).
        row_weights: (R,) factor of each row's loss; a constant.
        curve: nll (R,) -> what is weighted and summed, and its derivative by nll; nll itself where not given.

    Returns:
        The float32 scalar sum_r w_r c(nll_r), and nll float32 (R,), detached. The scalar is 0, and attached to the
        graph, where R = 0.
    """
    if weight is not None and not torch.is_grad_enabled():
        weight = weight.detach()  # a parameter would be given its gradient all the same
    loss, nll = _ChunkedWeightedNLL.apply(hidden, weight, gold_ids, row_weights, curve)
    return loss, nll


class _ChunkedWeightedNLL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor | None, gold_ids: Tensor, row_weights: Tensor, curve: Curve | None
    ) -> tuple[Tensor, Tensor]:
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        nll = hidden.new_empty(hidden.shape[0], dtype=torch.float32)
        hidden_gradient = torch.empty_like(hidden) if wants_hidden else None
        weight_gradient = None
        if weight is not None and wants_weight:
            weight_gradient = torch.zeros_like(weight, dtype=torch.float32)
        for rows, wide in chunked_logits(hidden, weight):
            gold = gold_ids[rows, None]
            gold_logits = wide.gather(-1, gold)
            largest = wide.amax(-1, keepdim=True)
            total = wide.sub_(largest).exp_().sum(-1, keepdim=True)
            nll[rows] = (largest + total.log() - gold_logits)[:, 0]
            if not (wants_hidden or wants_weight):
                continue
            slope = 1.0 if curve is None else curve(nll[rows])[1]
            factor = (row_weights[rows].float() * slope).masked_fill(~nll[rows].isfinite(), torch.nan)[:, None]
            wide.mul_(factor / total)
            wide.scatter_add_(-1, gold, -factor)
            if weight is None:
                assert hidden_gradient is not None
                hidden_gradient[rows] = wide
                continue
            narrow = wide.to(weight.dtype)
            if hidden_gradient is not None:
                torch.mm(narrow, weight, out=hidden_gradient[rows])
            if weight_gradient is not None and weight.dtype == torch.float32:
                weight_gradient.addmm_(narrow.T, hidden[rows])
            elif weight_gradient is not None:
                weight_gradient += narrow.T @ hidden[rows]
        if weight is not None and weight_gradient is not None:
            weight_gradient = weight_gradient.to(weight.dtype)
        ctx.gradients = (hidden_gradient, weight_gradient)
        ctx.mark_non_differentiable(nll)
        shaped = nll if curve is None else curve(nll)[0]
        return (shaped * row_weights).sum(), nll

    @staticmethod
    def backward(ctx: Any, loss_gradient: Tensor, *unused: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("a second backward through the chunked loss: its gradients were handed on by the first.")
        kept, ctx.gradients = ctx.gradients, None
        hidden_gradient, weight_gradient = (None if part is None else part.mul_(loss_gradient) for part in kept)
        return hidden_gradient, weight_gradient, None, None, None


def chunked_logits(hidden: Tensor, weight: Tensor | None) -> Iterator[tuple[slice, Tensor]]:
    """Ranges of rows and their logits (rows, V) in float32, of which the caller may make what it likes."""
    vocabulary = hidden.shape[1] if weight is None else weight.shape[0]
    step = max(1, CHUNK_LOGITS // vocabulary)
    for start in range(0, hidden.shape[0], step):
        rows = slice(start, start + step)
        part = hidden[rows]
        yield rows, part.to(torch.float32, copy=True) if weight is None else (part @ weight.T).float()
