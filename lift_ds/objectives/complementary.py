"""The complement of a mask, learned in the same forward: LaViDa's trick, as in LIFT's public code.

    1/2 [ loss of the targets at level t  +  loss of all other response tokens at level 1 - t ]

Shapes: B documents, L tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lift_ds.data.batch import MicroBatch

from .objective import SMALLEST_LEVEL, Choice, Objective, View
from .settings import ComplementarySettings


class Complementary(Objective):
    """An objective that can show each document twice: once with its targets masked, once with all the others."""

    settings: ComplementarySettings

    @property
    def observes_targets(self) -> bool:
        """Not of complements, which are masked where the targets are not."""
        return super().observes_targets and not self.settings.complementary

    def view(self, batch: MicroBatch, choice: Choice) -> View:
        """Each document once, or with its complement below it, both at half weight."""
        view = super().view(batch, choice)
        if not self.settings.complementary:
            return view
        rest = Choice(batch.response_mask & ~choice.targets, (1 - batch.t).clamp(min=SMALLEST_LEVEL))
        return both(view, super().view(batch, rest))

    def half_of_response(self, batch: MicroBatch) -> Tensor:
        """Targets (B,) of both views, at half weight: what the normaliser counts."""
        return batch.response_mask.sum(-1) / 2


def both(first: View, second: View) -> View:
    """Both views in one forward, at half weight each."""

    def join(name: str) -> Tensor:
        return torch.cat([getattr(first, name), getattr(second, name)])

    return View(
        clean_ids=join("clean_ids"),
        targets=join("targets"),
        weights=0.5 * join("weights"),
        attention_mask=join("attention_mask"),
        document=join("document"),
    )
