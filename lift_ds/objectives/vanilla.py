"""Vanilla SFT: learn what the level masks (LLaDA eq. 5)."""

from __future__ import annotations

from torch import Tensor

from lift_ds.data.batch import MicroBatch

from .objective import Objective, Scorer, View, candidates


class Vanilla(Objective):
    """One pass over the plain forward process."""

    options = frozenset({"complementary"})

    def view(self, batch: MicroBatch, scorer: Scorer) -> View:
        """All masked tokens are learned."""
        superset, filler = candidates(batch)
        view = self.single_view(batch, superset | filler, scorer, batch.t)
        return self.with_complement(batch, view, scorer) if self.settings.complementary else view

    def num_targets(self, batch: MicroBatch) -> Tensor:
        """Known from the masks."""
        superset, filler = candidates(batch)
        return batch.response_mask.sum(-1) / 2 if self.settings.complementary else (superset | filler).sum(-1)
