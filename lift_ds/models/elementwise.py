"""What a layer computes element by element, norm, rotation and gate, in plain torch with backwards of their own.

Autograd's backward of the same formulas keeps and writes more: the norm keeps its input alone, in its own type, and the
rotation's backward is the rotation the other way. Forwards are the formulas' to the last bit.

Shapes: B sequences, L tokens, D width of what is normalised, H heads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class Elementwise(NamedTuple):
    """The functions by which layers compute; see those of this module.

    Args:
        rms_norm: Of hidden states (..., D), a weight (D,) and eps.
        rotate: Of queries and keys (B, H, L, head_dim), cosines and sines; gives both.
        gate: Of gates and values (..., D).
    """

    rms_norm: Callable[[Tensor, Tensor, float], Tensor]
    rotate: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    gate: Callable[[Tensor, Tensor], Tensor]


def rms_norm(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Over the last dimension x / sqrt(mean(x^2) + eps), in float32, cast back, times the weight."""
    normed: Tensor = _RMSNorm.apply(hidden, weight, eps)
    return normed


def rotate(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Rotates queries and keys (B, H, L, head_dim) in float32 and casts back; tables as `rotary_tables` gives them."""
    return _Rotation.apply(query, cos, sin), _Rotation.apply(key, cos, sin)


def gate(gates: Tensor, values: Tensor) -> Tensor:
    """silu(gates) * values."""
    return F.silu(gates) * values


EAGER = Elementwise(rms_norm, rotate, gate)


class ElementwiseModule(nn.Module):
    """A module that computes with these functions; `kernels.use_kernels` gives it others."""

    elementwise: Elementwise = EAGER


class _RMSNorm(torch.autograd.Function):
    """With n = x / rms and u = gradient * weight:  dx = (u - n mean(u n)) / rms,  dweight = sum of gradient * n."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = hidden.float()
        inverse_rms = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(hidden, weight, inverse_rms)
        normed = (wide * inverse_rms).to(hidden.dtype)
        return normed.mul_(weight) if normed.dtype == weight.dtype else normed * weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None]:
        hidden, weight, inverse_rms = ctx.saved_tensors
        normed = hidden.float() * inverse_rms
        weight_gradient = None
        if ctx.needs_input_grad[1]:
            weight_gradient = (gradient * normed.to(hidden.dtype)).flatten(0, -2).sum(0)
        wide = (gradient * weight).float()
        along = torch.linalg.vecdot(wide, normed).unsqueeze(-1) / hidden.shape[-1]
        return wide.sub_(normed.mul_(along)).mul_(inverse_rms).to(hidden.dtype), weight_gradient, None


class _Rotation(torch.autograd.Function):
    """Rotates the pairs (x_i, x_(i + head_dim / 2)), and their gradients back."""

    @staticmethod
    def forward(ctx: Any, heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(heads, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turn(gradient, cos, -sin), None, None


def _turn(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    wide = heads.float()
    turned = wide * cos
    (first, second), (turned_first, turned_second) = wide.chunk(2, dim=-1), turned.chunk(2, dim=-1)
    half_sin = sin.chunk(2, dim=-1)[0]
    turned_first.sub_(second * half_sin)
    turned_second.add_(first * half_sin)
    return turned.to(heads.dtype)
