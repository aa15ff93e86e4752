"""Vanilla SFT: learn what the level masks (LLaDA eq. 5)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from lift_ds.data.batch import MicroBatch

from .complementary import Complementary
from .objective import Candidates, Choice
from .settings import ComplementarySettings


class VanillaSettings(ComplementarySettings):
    """No option of its own."""

    method: Literal["vanilla"] = "vanilla"


class Vanilla(Complementary):
    """One pass over the plain forward process."""

    settings_type = VanillaSettings

    def choose(self, batch: MicroBatch, candidates: Candidates, scores: Tensor | None) -> Choice:
        """All that is masked."""
        return Choice(candidates.masked, batch.t)

    def num_targets(self, batch: MicroBatch) -> Tensor:
        """Known from the masks."""
        return self.half_of_response(batch) if self.settings.complementary else self.noise(batch).masked.sum(-1)
