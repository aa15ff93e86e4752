"""LIFT: a superset is scored, its easy, hard or random tokens are learned, the others revealed.

    exact         a scoring pass without gradient on the superset, then a training pass on the kept tokens
    approximate   one pass, on the superset: it scores, and the kept tokens are learned right there
    buffer        no pass but for a fixed share of documents: the difficulty table's expected -log p at level t + rho
    memory        no pass but for a budget of documents: what is remembered of the row's tokens (`method.memory`)

Source: LIFT (arXiv 2605.22939) and its public code. Differs: the component is each document's own; see
`method.selection`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from lift_ds.data.batch import MicroBatch
from lift_ds.method.components import Component, lift2_component, lift3_component, random_component
from lift_ds.method.noise import extra_level
from lift_ds.method.selection import num_kept, select_kept

from .objective import Candidates, Choice, candidates
from .settings import ComplementarySettings, ScoredSettings
from .vanilla import Vanilla

TIE_NATS = 1e-4  # repeats of a token have the same expected score: the keyed uniform decides


class SupersetSettings(ComplementarySettings):
    """How far a superset goes beyond level t."""

    rho: Literal["code", "paper"] = Field("code", description="rule of LIFT's extra level rho")


class LiftSettings(SupersetSettings, ScoredSettings):
    """Where scores come from."""

    scoring: Literal["exact", "approximate", "buffer", "memory"] = Field(
        "exact",
        description="LIFT's scores: a pass of their own, the training pass, the table by token and level, or what is "
        "remembered of each token of a row",
    )
    refresh_share: float = Field(
        0.125, ge=0, le=1, description="share of documents that buffer scoring still scores exactly"
    )
    warm_start_steps: int = Field(50, ge=0, description="first steps in which it scores every document exactly")
    scoring_budget: float = Field(
        0.25,
        ge=0,
        le=1,
        description="share of all documents that memory scoring scores exactly: those that it is least sure of; 1 is "
        "scoring=exact",
    )

    def problems(self) -> list[str]:
        """As before, and options that this way of scoring does not read."""
        problems = super().problems()
        problems += self.unread("scoring", ("buffer",), "refresh_share", "warm_start_steps")
        problems += self.unread("scoring", ("memory",), "scoring_budget")
        problems += self.unread("scoring", ("exact", "buffer", "memory"), "scoring_precision")
        if self.complementary and self.scoring == "approximate":
            problems.append("objective.complementary: scoring=approximate has no mask before its forward; use exact")
        return problems


class SupersetObjective(Vanilla):
    """What all that choose from a superset share."""

    settings: SupersetSettings

    def extra_level(self, u: Tensor, t: Tensor, v: Tensor) -> Tensor:
        """By the rule that the settings name."""
        return extra_level(u, t, v, self.settings.rho)

    def kept(self, batch: MicroBatch, candidates: Candidates, scores: Tensor) -> Tensor:
        """The kept tokens (B, L) of each span's component, by log p(gold), exact or expected."""
        scores, superset, ties = map(batch.spans, (scores, candidates.superset, batch.tie_uniform))
        kept = select_kept(scores, superset, batch.t, batch.rho, batch.component, scores=ties, v=batch.count_uniform)
        return batch.of_spans(kept)

    def num_targets(self, batch: MicroBatch) -> Tensor | None:
        """How many are kept does not depend on the scores."""
        if self.settings.complementary:
            return super().num_targets(batch)
        masks = candidates(batch)
        kept = num_kept(batch.spans(masks.superset).sum(-1), batch.t, batch.rho, v=batch.count_uniform)
        return batch.by_document(kept).sum(-1) + masks.fillers.sum(-1)


class Lift(SupersetObjective):
    """What the LIFT objectives share: all but which component a level has."""

    settings: LiftSettings

    def __init__(self, settings: LiftSettings) -> None:
        super().__init__(settings)
        scoring = settings.scoring
        self.reads_difficulty = scoring in ("buffer", "memory")
        self.remembers_rows = scoring == "memory"
        self.chooses_in_training = scoring == "approximate"
        ever_scored = {
            "exact": True,
            "buffer": settings.refresh_share or settings.warm_start_steps,
            "memory": settings.scoring_budget,
        }
        if ever_scored.get(scoring):
            self.scoring_pass = "gold_logprob"

    def is_refreshed(self, u: Tensor, step: int) -> Tensor:
        """A fixed share of the documents, and all of the first steps."""
        always = self.settings.scoring != "buffer" or step < self.settings.warm_start_steps
        return (u < self.settings.refresh_share) | always

    def noise(self, batch: MicroBatch) -> Candidates:
        """The superset; scores are wanted where the component asks for them, and no expected ones do.

        Of blocks, one suffices that has something to choose from: a document is scored as a whole.
        """
        masks, needed = candidates(batch), batch.component != Component.RANDOM
        if batch.span_length is not None:
            needed = needed & batch.spans(masks.superset).any(-1)
        scored = batch.by_document(needed).any(-1)
        scored = scored & batch.is_refreshed if self.reads_difficulty else scored
        return replace(masks, scored=scored.nonzero()[:, 0])

    def choose(self, batch: MicroBatch, candidates: Candidates, scores: Tensor | None) -> Choice:
        """The kept tokens; all of the superset where the training pass is still to choose from it."""
        if self.chooses_in_training and scores is None:
            return Choice(candidates.masked, batch.t)
        agreement = None
        if self.reads_difficulty:
            scores, agreement = self.expected_scores(batch, candidates, scores)
        assert scores is not None
        return Choice(candidates.fillers | self.kept(batch, candidates, scores), batch.t, agreement)

    def expected_scores(
        self, batch: MicroBatch, candidates: Candidates, exact: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Log p(gold) (B, L) by table or memory, by the pass where it ran; and how far both agree on what to choose."""
        assert batch.difficulty is not None
        expected = -batch.difficulty + TIE_NATS * batch.tie_uniform
        if exact is None:
            return expected, None
        documents = candidates.scored
        by_scores = batch.per_token(batch.component != Component.RANDOM)
        chosen = (by_scores & self.kept(batch, candidates, scores) for scores in (exact, expected))
        in_scored = (each.index_select(0, documents) for each in (*chosen, candidates.superset))
        agreement = count_agreement(*(batch.spans(each) for each in in_scored))
        return expected.index_copy(0, documents, exact[documents]), agreement


def count_agreement(exact: Tensor, expected: Tensor, superset: Tensor) -> Tensor:
    """How far two choices of k from |S| tokens (N, S) agree: float32 (3,), summed over spans.

    Tokens in common, k, and k^2 / |S|: the mean of what two random choices have in common.
    """
    size, k = superset.sum(-1).float(), exact.sum(-1).float()
    return torch.stack([(exact & expected).sum().float(), k.sum(), (k * k / size.clamp(min=1)).sum()])


class PolicySettings(LiftSettings):
    """When which component is learned."""

    policy: Literal["time", "random"] = Field("time", description="LIFT's component by level, or drawn uniformly")


class Lift2(Lift):
    """Hard below t = 1/2, easy above."""

    settings: PolicySettings
    settings_type = PolicySettings

    def component(self, t: Tensor, u: Tensor) -> Tensor:
        """By level, or drawn."""
        if self.settings.policy == "random":
            return random_component(u, (Component.EASY, Component.HARD))
        return lift2_component(t)


class Lift3Settings(PolicySettings):
    """How levels are divided."""

    random_weight: float = Field(3.0, gt=0, description="c of LIFT-3: how wide the random middle is")


class Lift3(Lift):
    """Hard, random and easy by thirds of t (c = 3)."""

    settings: Lift3Settings
    settings_type = Lift3Settings

    def component(self, t: Tensor, u: Tensor) -> Tensor:
        """By level, or drawn."""
        if self.settings.policy == "random":
            return random_component(u, tuple(Component))
        return lift3_component(t, self.settings.random_weight)


class Single(Lift):
    """The method's namesake at every level, the tokens that are predicted best or worst: "what without when"."""

    settings_type = LiftSettings

    def component(self, t: Tensor, u: Tensor) -> Tensor:
        """Always the same."""
        return torch.full_like(t, int(Component[self.settings.method.upper()]), dtype=torch.int64)


class RandomKept(SupersetObjective):
    """Random tokens of the superset, at every level: vanilla SFT with another way of drawing the mask."""

    settings_type = SupersetSettings

    def choose(self, batch: MicroBatch, candidates: Candidates, scores: Tensor | None) -> Choice:
        """By the keyed uniforms; no scores are needed."""
        kept = self.kept(batch, candidates, torch.zeros_like(batch.tie_uniform))
        return Choice(candidates.fillers | kept, batch.t)
