"""The weighted cross-entropy of a vocabulary matrix, without ever holding all logits.

    loss = sum_r w_r c(nll_r),      nll_r = logsumexp_v(h_r . W_v) - h_r . W_{gold_r},      c: a curve, or nothing

Rows go through the matrix in chunks. The softmax of a chunk gives its loss and, at once, its share of both gradients:

    dh_r = w_r c' (softmax_r W - W_{gold_r})          dW = sum_r w_r c' (softmax_r - onehot_r)^T h_r

Where nll_r is not finite both gradients are NaN, so that no such step is ever applied.
Nothing is recomputed in backward, which only scales, in place, what was kept: (R, D) and, where W is trained, (V, D).

Models that only give logits are served too: without a matrix, the rows are their own logits, and D is V.

Logits are float32 sums also of bf16 matrices: as bf16 they would stand in steps of 0.125 between 16 and 32, and easy
tokens would tie.

Shapes: R rows, D width, V vocabulary. Memory beyond that: the float32 logits of a chunk, see `CHUNK_BYTES` (and once
more in the matrix's type, where that is another one). Differs: the public code holds the logits of all positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .weights import Curve

CHUNK_BYTES = {"cpu": 1 << 27, "cuda": 1 << 30}
"""Most bytes of a chunk's float32 logits, by the type of device.

On a GPU every chunk reads the matrix twice and, where it is trained, reads and writes its float32 gradient: at V =
126,464 and D = 4,096 these are 2 and 4 GB, however few the rows; 2 ms of an H100 by its bandwidth (not measured). 1 GiB
is 2,122 rows, about what a document of 4,096 tokens masks on average, and 1.3 % of 80 GB. On a CPU the size hardly
matters from 32 MiB on.
"""
WIDENED = 1 << 22  # elements of a narrow matrix that are float32 at once, where no kernel gives float32 sums


@torch.no_grad()
def chunked_gold_logprob(
    hidden: Tensor, weight: Tensor | None, gold_ids: Tensor, chunk_bytes: int | None = None
) -> Tensor:
    """Log p(gold) of rows, at most 0, without gradient: float32 (R,).

    Args:
        hidden: (R, D) hidden states.
        weight: (V, D) vocabulary matrix; without it `hidden` holds logits.
        gold_ids: int64 (R,) true ids.
        chunk_bytes: Most bytes of a chunk's logits; by the device where not given.
    """
    gold_logprob = hidden.new_empty(hidden.shape[0], dtype=torch.float32)
    for rows, logits in chunked_logits(hidden, weight, chunk_bytes):
        gold_logits = logits.gather(-1, gold_ids[rows, None])
        largest, total = _exponentials_(logits)
        gold_logprob[rows] = (gold_logits - (total.log() + largest))[:, 0]
        del logits  # before the next chunk's
    return gold_logprob


@torch.no_grad()
def chunked_confidence(hidden: Tensor, weight: Tensor | None, gold_ids: Tensor) -> Tensor:
    """Largest probability and p(gold) of each row, without gradient: float32 (R, 2); arguments as above."""
    confidence = hidden.new_empty((hidden.shape[0], 2), dtype=torch.float32)
    for rows, logits in chunked_logits(hidden, weight):
        probability = logits.softmax(-1)
        confidence[rows, 0] = probability.amax(-1)
        confidence[rows, 1] = probability.gather(-1, gold_ids[rows, None])[:, 0]
        del logits, probability
    return confidence


@torch.no_grad()
def chunked_entropy(hidden: Tensor, weight: Tensor | None) -> Tensor:
    """Entropy in nats of the predicted distributions, without gradient: float32 (R,); arguments as above."""
    entropy = hidden.new_empty(hidden.shape[0], dtype=torch.float32)
    for rows, logits in chunked_logits(hidden, weight):
        logprob = logits.log_softmax(-1)
        entropy[rows] = -torch.exp(logprob, out=logits).mul_(logprob).sum(-1)
        del logits, logprob
    return entropy.clamp(min=0.0)


def chunked_weighted_nll(
    hidden: Tensor,
    weight: Tensor | None,
    gold_ids: Tensor,
    row_weights: Tensor,
    curve: Curve | None = None,
    chunk_bytes: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The weighted loss of rows, differentiable in `hidden` and `weight`, which are of the same type.

    Args:
        hidden: As above, like the next two.
        weight: (V, D).
        gold_ids: (R,).
        row_weights: (R,) factor of each row's loss; a constant.
        curve: nll (R,) -> what is weighted and summed, and its derivative by nll; nll itself where not given.
        chunk_bytes: As above.

    Returns:
        The float32 scalar sum_r w_r c(nll_r), and nll float32 (R,), detached. The scalar is 0, and attached to the
        graph, where R = 0.
    """
    if weight is not None and not torch.is_grad_enabled():
        weight = weight.detach()  # a parameter would be given its gradient all the same
    loss, nll = _ChunkedWeightedNLL.apply(hidden, weight, gold_ids, row_weights, curve, chunk_bytes)
    return loss, nll


class _ChunkedWeightedNLL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor | None,
        gold_ids: Tensor,
        row_weights: Tensor,
        curve: Curve | None,
        chunk_bytes: int | None,
    ) -> tuple[Tensor, Tensor]:
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        nll = hidden.new_empty(hidden.shape[0], dtype=torch.float32)
        hidden_gradient = torch.empty_like(hidden) if wants_hidden else None
        weight_gradient = None
        if weight is not None and wants_weight:
            is_one = rows_of_chunk(hidden, weight, chunk_bytes) >= hidden.shape[0]
            make = torch.empty_like if hidden.shape[0] else torch.zeros_like
            weight_gradient = make(weight, dtype=weight.dtype if is_one else torch.float32)
        for rows, wide in chunked_logits(hidden, weight, chunk_bytes):
            gold = gold_ids[rows, None]
            gold_logits = wide.gather(-1, gold)
            largest, total = _exponentials_(wide)
            nll[rows] = (largest + total.log() - gold_logits)[:, 0]
            if wants_hidden or wants_weight:
                slope = 1.0 if curve is None else curve(nll[rows])[1]
                factor = (row_weights[rows].float() * slope).masked_fill(~nll[rows].isfinite(), torch.nan)[:, None]
                wide.mul_(factor / total)
                wide.scatter_add_(-1, gold, -factor)
            if hidden_gradient is not None and weight is None:
                hidden_gradient[rows] = wide
            elif weight is not None and (wants_hidden or wants_weight):
                narrow = wide.to(weight.dtype)
                if hidden_gradient is not None:
                    torch.mm(narrow, weight, out=hidden_gradient[rows])
                if weight_gradient is not None:
                    _accumulate(weight_gradient, narrow.T, hidden[rows], is_first=rows.start == 0)
                del narrow
            del wide  # before the next chunk's
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
        return hidden_gradient, weight_gradient, None, None, None, None


def rows_of_chunk(hidden: Tensor, weight: Tensor | None, chunk_bytes: int | None = None) -> int:
    """Rows that go through the matrix at once: as few chunks as the limit allows, and as many rows in each."""
    num_rows, vocabulary = hidden.shape[0], hidden.shape[1] if weight is None else weight.shape[0]
    limit = chunk_bytes or CHUNK_BYTES["cpu" if hidden.device.type == "cpu" else "cuda"]
    num_chunks = -(-num_rows // max(1, limit // (4 * vocabulary)))
    return -(-num_rows // max(1, num_chunks))


def chunked_logits(
    hidden: Tensor, weight: Tensor | None, chunk_bytes: int | None = None
) -> Iterator[tuple[slice, Tensor]]:
    """Ranges of rows and their logits (rows, V) in float32, of which the caller may make what it likes."""
    step = max(1, rows_of_chunk(hidden, weight, chunk_bytes))
    if weight is not None and not weight.is_meta and torch.is_autocast_enabled(weight.device.type):
        dtype = torch.get_autocast_dtype(weight.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)  # once, and not in every chunk
    for start in range(0, hidden.shape[0], step):
        rows = slice(start, start + step)
        yield rows, hidden[rows].to(torch.float32, copy=True) if weight is None else _product(hidden[rows], weight)


def _exponentials_(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Makes exp(logits - largest) of logits (rows, V), in place; gives the largest (rows, 1) and the sums (rows, 1)."""
    largest = logits.amax(-1, keepdim=True)
    return largest, logits.sub_(largest).exp_().sum(-1, keepdim=True)


def _product(part: Tensor, weight: Tensor) -> Tensor:
    """Logits (rows, V), summed in float32 and not rounded after that."""
    if part.dtype == torch.float32:
        return part @ weight.T
    if part.is_cuda or part.is_meta:
        return torch.mm(part, weight.T, out_dtype=torch.float32)
    logits, wide = part.new_empty((part.shape[0], weight.shape[0]), dtype=torch.float32), part.float()
    step = max(1, WIDENED // weight.shape[1])
    for start in range(0, weight.shape[0], step):
        some = slice(start, start + step)
        torch.mm(wide, weight[some].float().T, out=logits[:, some])
    return logits


def _accumulate(total: Tensor, left: Tensor, right: Tensor, is_first: bool) -> None:
    """Adds left right to a total of their type or in float32, or sets the total to it where it is the first."""
    if total.dtype == left.dtype:
        total.addmm_(left, right, beta=float(not is_first))
    elif total.is_cuda:
        torch.addmm(total, left, right, out_dtype=torch.float32, beta=float(not is_first), out=total)
    elif total.is_meta:
        pass  # as on a GPU nothing is made; torch 2.11 has no kernel for it
    elif is_first:
        total.copy_(left @ right)
    else:
        total += left @ right
