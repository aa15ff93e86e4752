"""LIFT: a superset is scored, its easy, hard or random tokens are learned, the others revealed.

    exact         a scoring pass without gradient on the superset, then a training pass on the kept tokens
    approximate   one pass, on the superset: it scores, and the kept tokens are learned right there
    buffer        no pass but for a fixed share of documents: the difficulty table's expected -log p at level t + rho
    hybrid        as buffer, and exact scores are shrunk towards the table by how much it has seen

Source: LIFT (arXiv 2605.22939) and its public code. Differs: the component is each document's own; see
`lift.selection`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from lift_ds.data.batch import MicroBatch
from lift_ds.method.components import Component, lift2_component, lift3_component, random_component
from lift_ds.method.selection import num_kept, select_kept

from .objective import Objective, Scorer, View, candidates

TIE_NATS = 1e-4  # repeats of a token have the same expected score: the keyed uniform decides
TRUSTED_COUNT = 8.0


class Lift(Objective):
    """What the LIFT objectives share: all but which component a level has."""

    draws_superset = True
    options = frozenset({"complementary", "rho", "scoring", "scoring_precision", "refresh_share", "warm_start_steps"})

    def view(self, batch: MicroBatch, scorer: Scorer) -> View:
        """The kept tokens, masked in an input that shows the rest."""
        superset, filler = candidates(batch)
        masked = superset | filler
        if self.settings.scoring == "approximate":
            view = self.single_view(batch, masked, scorer, batch.t)
            return replace(view, narrow=lambda scores: filler | self.select(batch, superset, scores))
        scores, agreement = self.scores(batch, superset, masked, scorer)
        view = self.single_view(batch, filler | self.select(batch, superset, scores), scorer, batch.t)
        view = self.with_complement(batch, view, scorer) if self.settings.complementary else view
        return replace(view, agreement=agreement)

    def scores(
        self, batch: MicroBatch, superset: Tensor, masked: Tensor, scorer: Scorer
    ) -> tuple[Tensor, Tensor | None]:
        """Log p(gold), exact or expected, float32 (B, L), and how far the two agree where both are known."""
        needed = batch.component != Component.RANDOM
        if self.settings.scoring == "exact":
            return scorer.gold_logprob(batch, masked, needed), None
        assert batch.difficulty is not None and batch.difficulty_count is not None
        expected = -batch.difficulty + TIE_NATS * batch.tie_uniform
        if not (self.settings.refresh_share or self.settings.warm_start_steps):  # a constant of the run, of all ranks
            return expected, None
        refreshed = needed & batch.is_refreshed
        exact = scorer.gold_logprob(batch, masked, refreshed)
        by_exact, by_table = (self.select(batch, superset, scores)[refreshed] for scores in (exact, expected))
        agreement = count_agreement(by_exact, by_table, superset[refreshed])
        if self.settings.scoring == "hybrid":
            seen = batch.difficulty_count / (batch.difficulty_count + TRUSTED_COUNT)
            exact = (exact + seen * expected) / (1 + seen)
        return torch.where(refreshed[:, None], exact, expected), agreement

    def select(self, batch: MicroBatch, superset: Tensor, scores: Tensor) -> Tensor:
        """The kept tokens of each document's component."""
        return select_kept(
            scores, superset, batch.t, batch.rho, batch.component, scores=batch.tie_uniform, v=batch.count_uniform
        )

    def num_targets(self, batch: MicroBatch) -> Tensor:
        """Known from the masks: how many are kept does not depend on the scores."""
        if self.settings.complementary:
            return batch.response_mask.sum(-1) / 2
        superset, filler = candidates(batch)
        return num_kept(superset.sum(-1), batch.t, batch.rho, v=batch.count_uniform) + filler.sum(-1)


def count_agreement(exact: Tensor, expected: Tensor, superset: Tensor) -> Tensor:
    """How far two choices of k from |S| tokens (B, L) agree: float32 (3,), summed over documents.

    Tokens in common, k, and k^2 / |S|: the mean of what two random choices have in common.
    """
    size, k = superset.sum(-1).float(), exact.sum(-1).float()
    return torch.stack([(exact & expected).sum().float(), k.sum(), (k * k / size.clamp(min=1)).sum()])


class Lift2(Lift):
    """Hard below t = 1/2, easy above."""

    options = Lift.options | {"policy"}

    def component(self, t: Tensor, u: Tensor) -> Tensor:
        """By level, or drawn."""
        if self.settings.policy == "random":
            return random_component(u, (Component.EASY, Component.HARD))
        return lift2_component(t)


class Lift3(Lift):
    """Hard, random and easy by thirds of t (c = 3)."""

    options = Lift.options | {"policy", "random_weight"}

    def component(self, t: Tensor, u: Tensor) -> Tensor:
        """By level, or drawn."""
        if self.settings.policy == "random":
            return random_component(u, tuple(Component))
        return lift3_component(t, self.settings.random_weight)


class Single(Lift):
    """One component at every level: the ablations "what without when"."""

    kept_component: ClassVar[Component]

    def component(self, t: Tensor, u: Tensor) -> Tensor:
        """Always the same."""
        return torch.full_like(t, int(self.kept_component), dtype=torch.int64)


class Easy(Single):
    """The tokens that are predicted best."""

    kept_component = Component.EASY


class Hard(Single):
    """The tokens that are predicted worst."""

    kept_component = Component.HARD


class RandomKept(Single):
    """Random tokens of the superset: vanilla SFT with another way of drawing the mask."""

    kept_component = Component.RANDOM
    options = frozenset({"complementary", "rho"})

    def scores(
        self, batch: MicroBatch, superset: Tensor, masked: Tensor, scorer: Scorer
    ) -> tuple[Tensor, Tensor | None]:
        """None are needed, at any level."""
        return torch.zeros_like(batch.tie_uniform), None
