"""When to learn what: the component of a level.

    LIFT-3   argmax of  hard: 1 - t,  random: c t (1 - t),  easy: t
             with c = 3: hard for t <= 1/3, random in between, easy for t >= 2/3
    LIFT-2   hard for t < 1/2, easy for t >= 1/2

Source: LIFT (arXiv 2605.22939). Differs: decided per example; the public code uses the mean t of its local batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import torch
from torch import Tensor


class Component(IntEnum):
    """Which tokens of the superset are kept for learning."""

    EASY = 0
    RANDOM = 1
    HARD = 2


def random_component(u: Tensor, components: Sequence[Component]) -> Tensor:
    """Components (B,) drawn uniformly, whatever the level; `u` (B,) are uniforms in [0, 1)."""
    choices = torch.tensor([int(component) for component in components], device=u.device)
    return choices[(u * len(components)).long()]


def lift2_component(t: Tensor) -> Tensor:
    """Components (B,) of levels (B,) without a random middle."""
    return torch.where(t >= 0.5, int(Component.EASY), int(Component.HARD))


def lift3_component(t: Tensor, c: float = 3.0) -> Tensor:
    """Components (B,) of levels (B,); `c` > 2 sets how wide the random middle is."""
    is_random = (c * t > 1) & (c * (1 - t) > 1)
    return torch.where(is_random, int(Component.RANDOM), lift2_component(t))
