"""What an objective decides, in the order in which a step asks it.

    noise     which tokens are masked before anything is known of them        Candidates
    score     what the model thinks of them: a pass that the objective declares, the same one on every rank
    choose    which of them are learned                                       Choice
    view      what the training pass sees, and what each learned token weighs  View

Shapes: B documents of a micro-batch, D documents of a view (B, or 2 B where each document is seen twice), L tokens,
N spans: what has a level of its own, a document or a block (`data.batch`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from lift_ds.data.batch import MicroBatch
from lift_ds.method.components import Component
from lift_ds.method.noise import superset_mask
from lift_ds.method.weights import Curve, cart_weights, mgdm_curve, papl_weights
from lift_ds.ranks.moving import Movable

from .settings import ObjectiveSettings, ScoredSettings

SMALLEST_LEVEL = 1e-3
ScoringPass = Literal["none", "gold_logprob", "entropy"]


@dataclass(frozen=True)
class Candidates(Movable):
    """What the forward process masks.

    Args:
        superset: bool (B, L), the tokens that are chosen from.
        fillers: bool (B, L), masked end tokens that only fill up a response: learned, never scored or chosen from, as
            they would be the most confident tokens of any superset. Disjoint from `superset`.
        scored: int64 (S,), ascending, the documents of which scores are wanted.
    """

    superset: Tensor
    fillers: Tensor
    scored: Tensor

    @property
    def masked(self) -> Tensor:
        """All that the scoring pass does not see: bool (B, L)."""
        return self.superset | self.fillers


@dataclass(frozen=True)
class Choice:
    """What is learned.

    Args:
        targets: bool (B, L), the tokens that stay masked and are learned; all others are revealed.
        levels: float32 (N,) or (B, L), the level that each is learned at: its loss is divided by it.
        agreement: float32 (3,), where both exact and expected scores are known: tokens that both choose, tokens that
            each chooses, and how many of them chance would have in common.
    """

    targets: Tensor
    levels: Tensor
    agreement: Tensor | None = None


class View(NamedTuple):
    """The input of one training forward: `clean_ids` with the targets masked.

    Args:
        clean_ids: int64 (D, L).
        targets: bool (D, L), the tokens that are masked and learned.
        weights: float32 (D, L), factor of each target's loss, before the normaliser.
        attention_mask: bool (D, L).
        document: int64 (D,), row of the micro-batch that each document of the view is.
    """

    clean_ids: Tensor
    targets: Tensor
    weights: Tensor
    attention_mask: Tensor
    document: Tensor


class Objective(ABC):
    """One row of the table; `docs/extending.md` adds one.

    Attributes:
        scoring_pass: The pass without gradient before the choice.
        chooses_in_training: Whether the training pass sees all candidates, and its own log p(gold) chooses of them.
        reads_difficulty: Whether micro-batches must carry the difficulties of their supersets.
        remembers_rows: Whether these are by row and place, from the difficulty memory; else by token and level.
        scores_in_bf16: Whether the scoring pass multiplies in bf16.
    """

    settings_type: ClassVar[type[ObjectiveSettings]] = ObjectiveSettings

    # constants of a run, never a matter of data: under ZeRO-3 passes are collective
    scoring_pass: ScoringPass = "none"
    chooses_in_training = False
    reads_difficulty = False
    remembers_rows = False

    def __init__(self, settings: ObjectiveSettings) -> None:
        self.settings = settings
        self.scores_in_bf16 = isinstance(settings, ScoredSettings) and settings.scoring_precision == "bf16"

    # what is drawn for each document, before anything is computed

    def component(self, t: Tensor, u: Tensor) -> Tensor:
        """Components (N,) of levels (N,); `u` (N,) are uniforms for policies that draw."""
        return torch.full_like(t, int(Component.RANDOM), dtype=torch.int64)

    def extra_level(self, u: Tensor, t: Tensor, v: Tensor) -> Tensor:
        """Extra levels rho (N,) of a superset, from the uniforms `u` that gave `t`, and fresh ones `v`; 0 without."""
        return torch.zeros_like(t)

    def is_refreshed(self, u: Tensor, step: int) -> Tensor:
        """Bool (B,): documents that are scored exactly in step `step` where others are not; `u` (B,) are uniforms."""
        return torch.ones_like(u, dtype=torch.bool)

    @property
    def observes_targets(self) -> bool:
        """Whether the learned tokens of random documents are masked at level t, independently of their difficulty.

        The difficulty table may learn from them then.
        """
        return not self.chooses_in_training

    # a step

    def noise(self, batch: MicroBatch) -> Candidates:
        """What is masked first: at level t, and up to t + rho where the objective draws an extra level.

        It runs on the CPU, before the micro-batch moves to the device, so that the sizes of what follows are known.
        """
        return candidates(batch)

    @abstractmethod
    def choose(self, batch: MicroBatch, candidates: Candidates, scores: Tensor | None) -> Choice:
        """What is learned; `scores` (B, L) are `scoring_pass`'s, 0 where nothing was scored, `None` without a pass."""

    def view(self, batch: MicroBatch, choice: Choice) -> View:
        """What the training pass sees: each document once, with the chosen tokens masked."""
        return View(
            clean_ids=batch.clean_ids,
            targets=choice.targets,
            weights=self.token_weights(batch, choice),
            attention_mask=batch.attention_mask,
            document=torch.arange(len(batch.clean_ids), device=batch.t.device),
        )

    @abstractmethod
    def num_targets(self, batch: MicroBatch) -> Tensor | None:
        """How many tokens (B,) each document will learn, the mean over its views; exact, as the passes are sized by it.

        `None` where it is not known before a forward: the host then waits for the device in each micro-batch.
        """

    def token_weights(self, batch: MicroBatch, choice: Choice) -> Tensor:
        """1 / t (with `time_scaling`), times CART's weights where they are asked for: float32 (B, L)."""
        level = batch.per_token(choice.levels) if choice.levels.dim() == 1 else choice.levels
        weights = 1.0 / level if self.settings.time_scaling else torch.ones_like(level)
        if self.settings.token_weight == "cart":
            weights = weights * cart_weights(choice.targets, self.settings.cart_p, batch.attention_mask)
        return weights

    @property
    def weighs_by_gold(self) -> bool:
        """Whether weights follow from the log p(gold) of what is learned, in the pass that learns it."""
        return self.settings.token_weight == "papl"

    def gold_weights(self, gold_logprob: Tensor, learned: Tensor) -> Tensor:
        """Further weights (B, L) of the tokens (B, L) that are learned."""
        return papl_weights(gold_logprob, learned, self.settings.papl_alpha, self.settings.papl_tau)

    def curve(self) -> Curve | None:
        """What a token's loss goes through."""
        settings = self.settings
        return mgdm_curve(settings.mgdm_alpha, settings.mgdm_gamma) if settings.token_weight == "mgdm" else None


def candidates(batch: MicroBatch) -> Candidates:
    """Response tokens whose uniform lies below t + rho, and fillers whose uniform lies below t; nothing is scored."""
    uniform, response, fillers = map(
        batch.spans, (batch.mask_uniform, batch.response_mask & ~batch.filler_mask, batch.filler_mask)
    )
    superset = superset_mask(uniform, response, batch.t, batch.rho)
    fillers = superset_mask(uniform, fillers, batch.t, torch.zeros_like(batch.rho))
    return Candidates(batch.of_spans(superset), batch.of_spans(fillers), torch.arange(0, device=batch.t.device))


def superset_level(batch: MicroBatch) -> Tensor:
    """The level t + rho at which a superset is masked, at most 1: float32 (B, L)."""
    return batch.per_token((batch.t + batch.rho).clamp(max=1.0))
