"""What an objective decides: what the model sees, which tokens it learns there, and what each of them weighs.

Shapes: B documents of a micro-batch, D documents of a view (B, or 2 B where each document is seen twice), L tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from lift_ds.data.batch import MicroBatch
from lift_ds.method.components import Component
from lift_ds.method.noise import superset_mask
from lift_ds.method.weights import Curve, cart_weights, mgdm_curve

from .settings import ObjectiveConfig

SMALLEST_LEVEL = 1e-3


@dataclass(frozen=True)
class View:
    """The input of one training forward.

    Args:
        noised_ids: int64 (D, L).
        targets: bool (D, L), the tokens that are learned.
        weights: float32 (D, L), factor of each target's loss, before the normaliser.
        attention_mask: bool (D, L).
        clean_ids: int64 (D, L).
        document: int64 (D,), row of the micro-batch that each document of the view is.
        narrow: From log p(gold) (D, L) of the targets in this very forward to the ones that are learned.
        agreement: float32 (3,), where both exact and expected scores are known: tokens that both choose, tokens that
            each chooses, and how many of them chance would have in common.
    """

    noised_ids: Tensor
    targets: Tensor
    weights: Tensor
    attention_mask: Tensor
    clean_ids: Tensor
    document: Tensor
    narrow: Callable[[Tensor], Tensor] | None = None
    agreement: Tensor | None = None


class Scorer(Protocol):
    """Passes without gradient; every rank runs each exactly once, whatever its data."""

    def mask(self, clean_ids: Tensor, masked: Tensor) -> Tensor:
        """The ids with the mask token on masked positions."""

    def gold_logprob(self, batch: MicroBatch, masked: Tensor, wanted: Tensor) -> Tensor:
        """Log p(clean) float32 (B, L) of masked positions of wanted (B,) documents; 0 elsewhere."""

    def entropy(self, batch: MicroBatch, masked: Tensor) -> Tensor:
        """Entropy float32 (B, L) of masked positions; 0 elsewhere."""


class Objective(ABC):
    """One row of the table; see `CONTRIBUTING.md` for how to add one.

    Attributes:
        draws_superset: Whether an extra level rho is drawn.
        options: Keys of `ObjectiveConfig` that only some objectives have and this one does.
    """

    draws_superset: ClassVar[bool] = False
    options: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, settings: ObjectiveConfig) -> None:
        """Stores the settings."""
        self.settings = settings

    @property
    def observes_targets(self) -> bool:
        """Whether the learned tokens of random documents are masked at level t, independently of their difficulty.

        The difficulty table may learn from them then.
        """
        return not self.settings.complementary and self.settings.scoring != "approximate"

    @property
    def reads_difficulty(self) -> bool:
        """Whether micro-batches must carry the difficulties of their supersets."""
        return self.settings.scoring in ("buffer", "hybrid")

    def component(self, t: Tensor, u: Tensor) -> Tensor:
        """Components (B,) of levels (B,); `u` (B,) are uniforms for policies that draw."""
        return torch.full_like(t, int(Component.RANDOM), dtype=torch.int64)

    @abstractmethod
    def view(self, batch: MicroBatch, scorer: Scorer) -> View:
        """What is trained on; the same passes on every rank."""

    @abstractmethod
    def num_targets(self, batch: MicroBatch) -> Tensor | None:
        """How many tokens (B,) each document will learn; `None` where that is not known before a forward."""

    def single_view(self, batch: MicroBatch, masked: Tensor, scorer: Scorer, t: Tensor) -> View:
        """Each document once, with `masked` (B, L) masked and learned at levels `t`, (B,) or (B, L)."""
        return View(
            noised_ids=scorer.mask(batch.clean_ids, masked),
            targets=masked,
            weights=self.token_weights(batch, masked, t),
            attention_mask=batch.attention_mask,
            clean_ids=batch.clean_ids,
            document=torch.arange(len(batch.t), device=batch.t.device),
        )

    def with_complement(self, batch: MicroBatch, view: View, scorer: Scorer) -> View:
        """The view, and in the same forward the response tokens that it leaves out, masked at level 1 - t."""
        rest = batch.response_mask & ~view.targets
        return concatenate(view, self.single_view(batch, rest, scorer, (1 - batch.t).clamp(min=SMALLEST_LEVEL)))

    def token_weights(self, batch: MicroBatch, masked: Tensor, t: Tensor) -> Tensor:
        """1 / t (with `time_scaling`), times CART's weights where they are asked for: float32 (B, L)."""
        level = t[:, None] if t.dim() == 1 else t
        weights = (1.0 / level if self.settings.time_scaling else torch.ones_like(level)).expand(masked.shape)
        if self.settings.token_weight == "cart":
            weights = weights * cart_weights(masked, self.settings.cart_p, batch.attention_mask)
        return weights

    def curve(self) -> Curve | None:
        """What a token's loss goes through."""
        if self.settings.token_weight != "mgdm":
            return None
        return mgdm_curve(self.settings.mgdm_alpha, self.settings.mgdm_gamma)


def concatenate(first: View, second: View) -> View:
    """Both views in one forward, at half weight each."""

    def both(name: str) -> Tensor:
        return torch.cat([getattr(first, name), getattr(second, name)])

    return View(
        noised_ids=both("noised_ids"),
        targets=both("targets"),
        weights=0.5 * both("weights"),
        attention_mask=both("attention_mask"),
        clean_ids=both("clean_ids"),
        document=both("document"),
    )


def candidates(batch: MicroBatch) -> tuple[Tensor, Tensor]:
    """The superset that components choose from, and the masked fillers: bool (B, L) each, disjoint.

    End tokens that only fill up a response are masked at level t and never scored or chosen: they would be the most
    confident tokens of any superset.
    """
    superset = superset_mask(batch.mask_uniform, batch.response_mask & ~batch.filler_mask, batch.t, batch.rho)
    filler = superset_mask(batch.mask_uniform, batch.filler_mask, batch.t, torch.zeros_like(batch.rho))
    return superset, filler


def superset_level(batch: MicroBatch) -> Tensor:
    """The level t + rho at which a superset is masked, at most 1: float32 (B, L)."""
    return (batch.t + batch.rho).clamp(max=1.0)[:, None].expand_as(batch.mask_uniform)
