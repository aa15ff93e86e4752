"""Which tokens of the superset stay masked.

    x = |S| min(t, 1) / min(t + rho, 1)                 how many should stay: seldom whole
    k = floor(x + v),  v ~ U(0, 1)                      x on average
    easy: the k largest log p(gold);  hard: the k smallest;  random: k at random

The others are revealed, so that the training input is masked at about level t again. Each kept token weighs 1 / t, and
E |S| = L min(t + rho, 1): the weights of a document of L response tokens sum to L on average, whatever t, rho and L.
A floor of one kept token breaks that where t is small: 16 tokens then weigh 1.6 times their share in the hard branch.

Source: LIFT (arXiv 2605.22939) and its public code. Differs: always exactly k. That code, and `select_kept` without
`v`, has k = round(|S| clamp(t / (t + rho), 1e-3, 1)), in float32, half to even, and at least `min_kept`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .components import Component

SMALLEST_RATIO = 1e-3


def num_kept(superset_count: Tensor, t: Tensor, rho: Tensor, min_kept: int = 1, v: Tensor | None = None) -> Tensor:
    """How many tokens of each superset are kept: int64 (B,).

    Args:
        superset_count: (B,) sizes |S|.
        t: (B,) levels in (0, 1].
        rho: (B,) extra levels, at least 0.
        min_kept: Fewest kept where the superset is not empty; 0 reproduces the public code's easy and hard branches.
            Not read where `v` is given.
        v: (B,) uniforms in [0, 1): round so that the mean is kept. Without them, to the nearest, as the public code.
    """
    if v is not None:
        level, wide = t.double().clamp(max=1.0), (t.double() + rho.double()).clamp(max=1.0)
        return (superset_count * (level / wide) + v).floor().long().minimum(superset_count.long())
    ratio = (t.float() / (t.float() + rho.float())).clamp(SMALLEST_RATIO, 1.0)
    kept = torch.round(superset_count.float() * ratio).long()
    return torch.minimum(kept.clamp(min=min_kept), superset_count.long())


def select_kept(
    gold_logprob: Tensor,
    superset: Tensor,
    t: Tensor,
    rho: Tensor,
    component: str | Tensor | Sequence[str],
    scores: Tensor | None = None,
    generator: torch.Generator | None = None,
    min_kept: int = 1,
    v: Tensor | None = None,
) -> Tensor:
    """Chooses the tokens to learn from.

    Args:
        gold_logprob: (B, L) log p(clean) of the scoring pass; read on the superset only.
        superset: bool (B, L), the candidates.
        t: (B,) levels in (0, 1].
        rho: (B,) extra levels, at least 0.
        component: `easy`, `random` or `hard`, one for all or one per example; or an int (B,) tensor of `Component`.
        scores: (B, L) uniforms that decide the random component, largest kept; drawn where not given.
        generator: Source of those draws.
        min_kept: See `num_kept`.
        v: (B,) uniforms that round how many are kept; see `num_kept`.

    Returns:
        bool (B, L): a subset of `superset` with exactly `num_kept` tokens per example.

    Raises:
        ValueError: Unknown component, or one list entry per example is missing.
    """
    component_ids = component_tensor(component, superset)
    if scores is None:
        scores = torch.rand(superset.shape, generator=generator, device=superset.device)
    per_row = component_ids[:, None]
    priority = torch.where(per_row == Component.EASY, gold_logprob.float(), -gold_logprob.float())
    priority = torch.where(per_row == Component.RANDOM, scores.float(), priority)
    lowest = torch.finfo(torch.float32).min
    priority = priority.clamp(min=lowest).masked_fill(~superset, -torch.inf)
    order = priority.argsort(dim=-1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(
        -1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )
    return superset & (rank < num_kept(superset.sum(-1), t, rho, min_kept, v)[:, None])


def component_tensor(component: str | Tensor | Sequence[str], superset: Tensor) -> Tensor:
    """Component ids (B,) on the superset's device, from any of the accepted forms."""
    if isinstance(component, Tensor):
        return component.to(superset.device)
    names = [component] * superset.shape[0] if isinstance(component, str) else list(component)
    allowed = [member.name.lower() for member in Component]
    unknown = sorted({name for name in names if name not in allowed})
    if unknown or len(names) != superset.shape[0]:
        raise ValueError(
            f"component={component!r}: give one of {allowed}, or one per example "
            f"({superset.shape[0]} examples, {len(names)} names)."
        )
    return torch.tensor([Component[name.upper()] for name in names], device=superset.device)
