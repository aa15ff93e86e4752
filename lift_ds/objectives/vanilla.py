"""Vanilla SFT: learn what the level masks (LLaDA eq. 5), and its complement where that is asked for.

    1/2 [ loss of the targets at level t  +  loss of all other response tokens at level 1 - t ]

Source: the complement is LaViDa's, as in LIFT's public code.
Shapes: B documents.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lift_ds.data.batch import MicroBatch

from .objective import SMALLEST_LEVEL, Candidates, Choice, Objective, View
from .settings import ComplementarySettings


class Vanilla(Objective):
    """One pass over the plain forward process, each document once or twice."""

    settings: ComplementarySettings
    settings_type = ComplementarySettings

    @property
    def observes_targets(self) -> bool:
        """Not of complements, which are masked where the targets are not."""
        return super().observes_targets and not self.settings.complementary

    def choose(self, batch: MicroBatch, candidates: Candidates, scores: Tensor | None) -> Choice:
        """All that is masked."""
        return Choice(candidates.masked, batch.t)

    def view(self, batch: MicroBatch, choice: Choice) -> View:
        """Each document once, or with its complement below it, both at half weight."""
        view = super().view(batch, choice)
        if not self.settings.complementary:
            return view
        rest = Choice(batch.response_mask & ~choice.targets, (1 - batch.t).clamp(min=SMALLEST_LEVEL))
        both = View(*map(torch.cat, zip(view, super().view(batch, rest), strict=True)))
        return both._replace(weights=0.5 * both.weights)

    def num_targets(self, batch: MicroBatch) -> Tensor | None:
        """All that is masked; or half of the response, as both views count half."""
        return batch.response_mask.sum(-1) / 2 if self.settings.complementary else self.noise(batch).masked.sum(-1)
