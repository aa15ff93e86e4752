"""The forward process: levels, the superset's extra level rho, and which tokens are masked.

    u ~ U(0, 1)
    t = t_min + (1 - t_min) u                       level, 1 = fully masked
    u <- u (t_max - t_min) / (1 - t_min)            where levels end at t_max
    rho = lower + (1 - u - lower) v,  v ~ U(0, 1)   lower = 0.1 where 1 - u > 0.1, else 0     ("code")
    rho = (1 - t) v                                                                          ("paper")
    superset_i = response_i and U_i < t + rho

Shapes: B sequences, L tokens. Source: LIFT (arXiv 2605.22939) and its public code; LLaDA eq. 5 for t.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

RhoRule = Literal["code", "paper"]
SMALLEST_CODE_RHO = 0.1
GOLDEN_RATIO = 0.6180339887498949
SILVER_RATIO = 0.41421356237309503


def level_from_uniform(u: Tensor, t_min: float = 1e-3) -> Tensor:
    """Levels t in [t_min, 1) from uniforms in [0, 1) of any shape; the public code's eps, here t_min, is 1e-3.

    Raises:
        ValueError: `t_min` is outside (0, 1).
    """
    if not 0 < t_min < 1:
        raise ValueError(f"t_min={t_min}: allowed are 0 < t_min < 1 (the loss divides by t).")
    return t_min + (1 - t_min) * u


def narrowed(u: Tensor, t_min: float, t_max: float) -> Tensor:
    """Uniforms whose levels end at `t_max`, from uniforms in [0, 1) of any shape: what follows from u follows them.

    Raises:
        ValueError: There is no level between the two.
    """
    if not t_min < t_max <= 1:
        raise ValueError(f"t_max={t_max}: allowed are {t_min} (t_min) < t_max <= 1.")
    return u * ((t_max - t_min) / (1 - t_min))


def stratify(u_step: float, slot: int, num_slots: int, index: int = 0, block: int = 0) -> float:
    """Uniform of one document when u is spread evenly over a batch: (u_step + slot / num_slots + index g) mod 1.

    The documents of the pack in one slot, numbered by `index`, are spread by multiples of the golden ratio g = 0.618...
    Where each block of a document has a level, they are by multiples of the silver ratio 0.414..., another one, so that
    no two series meet.
    """
    return (u_step + slot / num_slots + index * GOLDEN_RATIO + block * SILVER_RATIO) % 1.0


def extra_level(u: Tensor, t: Tensor, v: Tensor, rule: RhoRule = "code") -> Tensor:
    """The superset's extra level rho (B,), so that t + rho <= 1 up to t_min.

    Args:
        u: (B,) the uniforms that gave t.
        t: (B,) levels.
        v: (B,) fresh uniforms.
        rule: `code` as in the public code, `paper` as in the paper's figure.
    """
    if rule == "paper":
        return (1 - t) * v
    room = 1 - u
    lower = torch.where(room > SMALLEST_CODE_RHO, SMALLEST_CODE_RHO, 0.0)
    return lower + (room - lower) * v


def superset_mask(uniform: Tensor, response_mask: Tensor, t: Tensor, rho: Tensor) -> Tensor:
    """Candidates for masking: bool (B, L), response tokens whose uniform lies below t + rho.

    Args:
        uniform: (B, L) uniforms in [0, 1).
        response_mask: bool (B, L), true on tokens that may be masked.
        t: (B,) levels.
        rho: (B,) extra levels; 0 gives the plain forward process.
    """
    return response_mask & (uniform < (t + rho)[:, None])
