"""What the loss is."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lift_ds.section import Section


class ObjectiveConfig(Section):
    """What the loss is."""

    method: str = Field(
        "lift3", description="vanilla, lift2, lift3, easy, hard, random (one component at every level) or gift"
    )
    policy: Literal["time", "random"] = Field("time", description="LIFT's component by level, or drawn uniformly")
    scoring: Literal["exact", "approximate", "buffer", "hybrid"] = Field(
        "exact", description="LIFT's scores: a pass of their own, the training pass, the buffers, or both together"
    )
    refresh_share: float = Field(
        0.125, ge=0, le=1, description="share of documents that buffer and hybrid scoring still score exactly"
    )
    warm_start_steps: int = Field(50, ge=0, description="first steps in which they score every document exactly")
    scoring_precision: Literal["model", "bf16"] = Field("model", description="type of the scoring pass's products")
    complementary: bool = Field(False, description="also learn, in the same forward, what the mask left out, at 1 - t")
    token_weight: Literal["none", "cart", "mgdm"] = Field(
        "none", description="further weight of a token: CART's context weight, or MGDM's reweighting by its loss"
    )
    cart_p: float = Field(0.1, gt=0, le=1, description="parameter of CART's geometric kernel")
    mgdm_alpha: float = Field(0.25, gt=0, description="alpha of MGDM's alpha (1 - exp(-l))^gamma l")
    mgdm_gamma: float = Field(2.0, ge=0, description="gamma of the same")
    time_scaling: bool = Field(True, description="divide each token's loss by its level t")
    t_min: float = Field(1e-3, gt=0, lt=1, description="smallest level; bounds the weight 1/t")
    t_sampling: Literal["iid", "stratified"] = Field(
        "stratified", description="independent levels, or spread evenly over the global batch"
    )
    rho: Literal["code", "paper"] = Field("code", description="rule of LIFT's extra level rho")
    random_weight: float = Field(3.0, gt=0, description="c of LIFT-3: how wide the random middle is")
    normalizer: Literal["response_tokens", "masked_tokens", "per_example", "reference"] = Field(
        "response_tokens", description="what the step's summed loss is divided by, over all ranks and micro-batches"
    )
