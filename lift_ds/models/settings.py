"""Which model a run trains, and how it is set up."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from lift_ds.section import Section


class ModelConfig(Section):
    """Which model, and how it is set up."""

    path: str = Field(
        "builtin:base",
        description="folder in the public layout, hub name, a run's checkpoint (its weights), or builtin:base",
    )
    from_scratch: bool = Field(False, description="new random weights; only config and tokenizer are read from path")
    gradient_checkpointing: bool = Field(False, description="recompute each block in backward instead of storing it")
    checkpoint_layers: int | None = Field(
        None, ge=0, description="recompute this many blocks only, spread evenly; instead of gradient_checkpointing"
    )
    attention: Literal["auto", "varlen", "sdpa", "math"] = Field(
        "auto", description="kernel: varlen (one call, no padding; GPU, bf16), sdpa (torch's choice), math (reference)"
    )
    kernels: Literal["auto", "liger", "eager"] = Field(
        "auto", description="of norms, rotation, gates: liger (GPU, with lift_ds[gpu]), eager (torch); auto: what runs"
    )
    compile: bool = Field(False, description="torch.compile for each block; the first steps take longer")
    freeze_router: bool = Field(False, description="mixtures: the matrices that choose experts stay as they are")
    router_aux_loss: float = Field(
        0.0,
        ge=0,
        description="mixtures: factor of the loss that evens out the experts' load; 0: none, as published",
    )
    warm_up: bool | Literal["auto"] = Field(
        "auto",
        description="run the largest micro-batch that may come before the first step; auto: where a GPU computes",
    )
    peak_tflops: float | None = Field(
        None, gt=0, description="what a device can do, for MFU: dense bf16, 10^12 a second; by its name where not given"
    )
    profile_steps: str | None = Field(None, description="FIRST-LAST, as 10-12: these steps' torch profile, of rank 0")

    @field_validator("profile_steps")
    @classmethod
    def check_profile_steps(cls, steps: str | None) -> str | None:
        """Checks that they are two steps in order."""
        if steps is not None and profiled_steps(steps) is None:
            raise ValueError(f"model.profile_steps={steps}: write FIRST-LAST, steps from 1 on, for example 10-12")
        return steps

    @model_validator(mode="after")
    def check_one_number(self) -> ModelConfig:
        """Checks that one key says how many layers are computed again."""
        if self.gradient_checkpointing and self.checkpoint_layers is not None:
            raise ValueError(
                f"model.checkpoint_layers={self.checkpoint_layers}: model.gradient_checkpointing=true means all "
                "layers; remove one of them, or set model.gradient_checkpointing=false"
            )
        return self

    def num_checkpointed(self, num_layers: int) -> int:
        """How many of a model's layers are computed again in backward.

        Raises:
            ValueError: `checkpoint_layers` is more than there are.
        """
        if self.checkpoint_layers is None:
            return num_layers if self.gradient_checkpointing else 0
        if self.checkpoint_layers > num_layers:
            raise ValueError(
                f"model.checkpoint_layers={self.checkpoint_layers}: the model has {num_layers} layers; "
                "name at most as many"
            )
        return self.checkpoint_layers


def profiled_steps(text: str) -> tuple[int, int] | None:
    """First and last step of `FIRST-LAST`; `None` where it is not that."""
    found = re.fullmatch(r"(\d+)-(\d+)", text)
    first, last = (int(each) for each in found.groups()) if found else (0, 0)
    return (first, last) if 1 <= first <= last else None


class LoraConfig(Section):
    """Low-rank adapters instead of full fine-tuning; off while rank is 0."""

    rank: int = Field(0, ge=0, description="rank r of the adapters; 0 trains all weights")
    alpha: float = Field(256.0, gt=0, description="scale: the update is multiplied by alpha / rank")
    dropout: float = Field(0.05, ge=0, lt=1, description="dropout on the adapters' input")
    targets: list[str] = Field(
        ["q_proj", "k_proj", "v_proj"],
        min_length=1,
        description="names of the matrices that get adapters, or their ends: q_proj, shared_experts.up_proj",
    )
