"""What every objective has: weights, levels, the normaliser. Each objective's file adds its own options."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from lift_ds.section import Section


class ObjectiveSettings(Section):
    """What the loss is."""

    method: str = Field(
        "lift3", description="vanilla, lift2, lift3, easy, hard, random (one component at every level) or gift"
    )
    token_weight: Literal["none", "cart", "mgdm", "papl"] = Field(
        "none", description="further weight of a token: CART's by its context, MGDM's or PAPL's by its loss"
    )
    cart_p: float = Field(0.1, gt=0, le=1, description="parameter of CART's geometric kernel")
    mgdm_alpha: float = Field(0.25, gt=0, description="alpha of MGDM's alpha (1 - exp(-l))^gamma l")
    mgdm_gamma: float = Field(2.0, ge=0, description="gamma of the same")
    papl_alpha: float = Field(1.0, ge=0, description="alpha of PAPL's 1 + alpha softmax(log p(gold) / tau)")
    papl_tau: float = Field(1.0, gt=0, description="tau of the same")
    time_scaling: bool = Field(True, description="divide each token's loss by its level t")
    t_min: float = Field(1e-3, gt=0, lt=1, description="smallest level; bounds the weight 1/t")
    t_max: float = Field(1.0, gt=0, le=1, description="largest level; LLaDA2's fine-tuning ends at 0.8")
    level_per: Literal["document", "block"] = Field(
        "document", description="what has a level of its own; blocks are those of models that denoise block after block"
    )
    t_sampling: Literal["iid", "stratified"] = Field(
        "stratified", description="independent levels, or spread evenly over the global batch"
    )
    normalizer: Literal["response_tokens", "masked_tokens", "per_example", "reference"] = Field(
        "response_tokens", description="what the step's summed loss is divided by, over all ranks and micro-batches"
    )

    def problems(self) -> list[str]:
        """Options that are set and not read, and combinations that mean nothing; one line each."""
        problems = [
            *self.unread("token_weight", ("cart",), "cart_p"),
            *self.unread("token_weight", ("mgdm",), "mgdm_alpha", "mgdm_gamma"),
            *self.unread("token_weight", ("papl",), "papl_alpha", "papl_tau"),
        ]
        if self.t_max <= self.t_min:
            problems.append(f"objective.t_max={self.t_max}: it must be above objective.t_min={self.t_min}")
        if self.level_per == "block" and self.token_weight == "cart":
            problems.append(
                "objective.token_weight=cart: it counts later blocks as context, which no block sees; not with "
                "objective.level_per=block"
            )
        if self.level_per == "block" and self.token_weight == "papl":
            problems.append(
                "objective.token_weight=papl: its softmax compares the tokens of a document at one level; not with "
                "objective.level_per=block"
            )
        return problems

    def unread(self, key: str, values: tuple[str, ...], *options: str) -> list[str]:
        """A problem for each of `options` that is set although `key`, which has none of `values`, leaves it unread."""
        if getattr(self, key) in values:
            return []
        changed = [name for name in options if getattr(self, name) != type(self).model_fields[name].default]
        needed = f"objective.{key}={' or '.join(values)}"
        return [f"objective.{name}={getattr(self, name)}: only read with {needed}" for name in changed]

    @model_validator(mode="after")
    def _check_options(self) -> ObjectiveSettings:
        problems = self.problems()
        if problems:
            raise ValueError("\n".join(problems))
        return self


class ScoredSettings(ObjectiveSettings):
    """Options of objectives that ask the model before they choose."""

    scoring_precision: Literal["model", "bf16"] = Field("model", description="type of the scoring pass's products")


class ComplementarySettings(ObjectiveSettings):
    """Options of objectives whose masks have a complement."""

    complementary: bool = Field(False, description="also learn, in the same forward, what the mask left out, at 1 - t")
