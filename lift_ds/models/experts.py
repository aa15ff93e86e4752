"""Mixtures of experts: which experts a token goes to is decided on the device, and every token gets all of its own.

    mixture(x) = sum_k weight_k(x) expert_k(x),      expert(x) = down(silu(gate(x)) * up(x))

Experts are modules of their own under the public names, and are never called: tokens are sorted by expert, and each of
the three products is one call over all experts. A product keeps the experts' parameters themselves for the backward,
not a stacked copy: under ZeRO-3 they are let go after the forward, and gathered again. Every expert gets a gradient on
every rank, zeros where no token went to it.

Shapes: T tokens, K experts a token, E experts, D model width, F width of an expert.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .balance import Counted, WithLoss, balance
from .elementwise import ElementwiseModule
from .layers import GatedMLP


class Experts(nn.ModuleList):
    """The experts of a layer, `GatedMLP`s of one size."""

    def __init__(self, count: int, width: int, inner: int) -> None:
        super().__init__(GatedMLP(width, inner) for _ in range(count))

    def forward(self, tokens: Tensor, chosen: Tensor, weights: Tensor, gate: Callable[..., Tensor]) -> Tensor:
        """What each token's experts make of it, weighted and summed: (T, D).

        Args:
            tokens: (T, D).
            chosen: int64 (T, K), the experts of each token.
            weights: (T, K), theirs; the sum is computed in the wider type of weights and tokens.
            gate: See `Elementwise`.
        """
        order = chosen.flatten().argsort(stable=True)
        back = order.argsort()
        sizes = torch.zeros(len(self), dtype=torch.int32, device=chosen.device)
        sizes = sizes.scatter_add_(0, chosen.flatten(), torch.ones_like(order, dtype=torch.int32))
        ends = sizes.cumsum(0, dtype=torch.int32)
        rows = _Sent.apply(tokens, order, back, chosen.shape[1])
        inner = gate(self.product("gate_proj", rows, ends), self.product("up_proj", rows, ends))
        out = _Sorted.apply(self.product("down_proj", inner, ends), back, order).unflatten(0, chosen.shape)
        return (out * weights[..., None]).sum(1).to(tokens.dtype)

    def product(self, name: str, rows: Tensor, ends: Tensor) -> Tensor:
        """The product of rows (TK, ...), sorted by expert, with the matrix of this name of each row's expert."""
        matrices = [cast(nn.Linear, getattr(expert, name)).weight for expert in self]
        return cast(Tensor, _GroupedLinear.apply(rows, ends, *matrices))


class _Sent(torch.autograd.Function):
    """Tokens (T, D), each as often as it has experts, in the order of the experts: (TK, D); without atomic sums."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, order: Tensor, back: Tensor, num_chosen: int) -> Tensor:
        ctx.save_for_backward(back)
        ctx.num_chosen = num_chosen
        return tokens.index_select(0, order // num_chosen)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (back,) = ctx.saved_tensors
        return gradient.index_select(0, back).unflatten(0, (-1, ctx.num_chosen)).sum(1), None, None, None


class _Sorted(torch.autograd.Function):
    """Rows in another order, and their gradients in the one before."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, order: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(back)
        return rows.index_select(0, order)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (back,) = ctx.saved_tensors
        return gradient.index_select(0, back), None, None


class _GroupedLinear(torch.autograd.Function):
    """Rows (R, in), of which group e ends before row ends[e], times matrices (out, in), one a group: (R, out)."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, ends: Tensor, *matrices: Tensor) -> Tensor:
        ctx.save_for_backward(rows, ends, *matrices)
        return grouped_rows(rows, ends, matrices, is_transposed=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, ends, *matrices = ctx.saved_tensors
        gradient = gradient.contiguous()
        of_rows = grouped_rows(gradient, ends, matrices, is_transposed=False) if ctx.needs_input_grad[0] else None
        of_matrices: Sequence[Tensor | None] = [None] * len(matrices)
        if any(ctx.needs_input_grad[2:]):
            of_matrices = grouped_outer(gradient, rows, ends)
        return of_rows, None, *of_matrices


def has_grouped_kernel(rows: Tensor) -> bool:
    """Whether torch's grouped product is one kernel for such rows; then the host never learns the groups' sizes."""
    return rows.is_cuda and rows.dtype == torch.bfloat16


def group_sizes(ends: Tensor, num_rows: int) -> list[int]:
    """Rows of each group, of which the host learns; equal ones on the meta device, where nobody knows them."""
    count = len(ends)
    bounds = [num_rows * (place + 1) // count for place in range(count)] if ends.is_meta else ends.tolist()
    return [end - start for start, end in zip([0, *bounds], bounds, strict=False)]


def grouped_rows(rows: Tensor, ends: Tensor, matrices: Sequence[Tensor], is_transposed: bool) -> Tensor:
    """Rows (R, in) times their group's matrix (in, out), or the other way round: (R, out)."""
    if has_grouped_kernel(rows):
        bank = torch.stack([*matrices])
        return F.grouped_mm(rows, bank.transpose(1, 2) if is_transposed else bank, offs=ends)
    parts = zip(rows.split(group_sizes(ends, len(rows))), matrices, strict=True)
    return torch.cat([part @ (matrix.t() if is_transposed else matrix) for part, matrix in parts])


def grouped_outer(left: Tensor, right: Tensor, ends: Tensor) -> Sequence[Tensor]:
    """Of each group the sum of its rows' outer products: of (R, out) and (R, in), (out, in) each."""
    if has_grouped_kernel(left):
        return F.grouped_mm(left.t(), right, offs=ends).unbind()
    sizes = group_sizes(ends, len(left))
    return [each.t() @ other for each, other in zip(left.split(sizes), right.split(sizes), strict=True)]


class Router(nn.Module):
    """What chooses a token's experts, see `Mixture`."""

    weight: nn.Parameter

    def probabilities(self, logits: Tensor) -> Tensor:
        """Of logits (T, E) the probabilities of all experts, float32 (T, E)."""
        raise NotImplementedError


class Mixture(ElementwiseModule):
    """A feed-forward layer of experts, with a router and perhaps a shared expert that every token goes through.

    Args:
        router: Maps tokens (T, D) to its logits (T, E), the chosen experts and their weights, both (T, K); its method
            `probabilities` maps logits to what sums to 1, float32 (T, E).
        experts: E experts.
        shared: Width of the shared expert; 0 for none.

    Attributes:
        counted: What the next pass with gradient counts of the choices; `None` for nothing. Where the balance loss is
            learned it stays, as backward may compute the layer again.
        sums: What the last training pass counted, see `balance`.
    """

    counted: Counted | None = None
    sums: Tensor

    def __init__(self, router: Router, experts: Experts, width: int, shared: int = 0) -> None:
        super().__init__()
        self.gate = router
        self.experts = experts
        if shared:
            self.shared_experts = GatedMLP(width, shared)

    def forward(self, hidden: Tensor) -> Tensor:
        """Maps (B, L, D) to (B, L, D)."""
        tokens = hidden.flatten(0, -2)
        logits, chosen, weights = self.gate(tokens)
        routed = self.experts(tokens, chosen, weights, self.elementwise.gate).view_as(hidden)
        if self.counted is not None and torch.is_grad_enabled():
            routed = self.count(routed, self.gate.probabilities(logits), chosen, self.counted)
        return routed + self.shared_experts(hidden) if hasattr(self, "shared_experts") else routed

    def count(self, routed: Tensor, probabilities: Tensor, chosen: Tensor, counted: Counted) -> Tensor:
        """Keeps the sums; the hidden states with the balance loss in their backward, where that is learned."""
        with torch.set_grad_enabled(counted.factor is not None):
            loss, self.sums = balance(probabilities, chosen, counted.tokens)
        return routed if counted.factor is None else WithLoss.apply(routed, loss, counted.factor)


def mixtures_of(model: nn.Module) -> list[Mixture]:
    """A model's mixtures, in order."""
    return [module for module in model.modules() if isinstance(module, Mixture)]
