"""What a run measures on held-out data."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, field_validator, model_validator

from lift_ds.data.tasks import MIXTURES
from lift_ds.sampling.settings import BlockLength, FixedSteps, GenLength, Steps


class EvalConfig(FixedSteps):
    """What is measured on held-out data."""

    prefix: ClassVar[str] = "eval."

    every: int = Field(100, ge=0, description="steps between held-out losses; 0 measures before and after only")
    patience: int = Field(
        0,
        ge=0,
        description="end the run once so many held-out losses, one every eval.every steps, have not improved; 0: never",
    )
    path: str | list[str] | None = Field(
        None, description="held-out rows; default: eval.rows rows kept out of data.path"
    )
    rows: int = Field(32, ge=0, description="number of held-out rows; 0 turns the held-out loss off")
    solve_items: int = Field(0, ge=0, description="items of solve_data answered before and after; 0 turns it off")
    solve_data: str = Field("builtin:reasoning", description="built-in data whose held-out items are answered")
    solve_every: int = Field(0, ge=0, description="steps between answers to eval.solve_subset while training; 0: none")
    solve_subset: int = Field(24, ge=1, description="items of solve_data answered so: the first of solve_items")
    watch_every: int = Field(
        0, ge=0, description="steps between looks at one of solve_subset while its answer is un-masked; 0: none"
    )
    gen_length: GenLength = 64
    block_length: BlockLength = 64
    steps: Steps = 64

    @model_validator(mode="after")
    def _can_wait(self) -> EvalConfig:
        if self.patience and not (self.every and self.rows):
            missing = "eval.every" if not self.every else "eval.rows"
            raise ValueError(f"eval.patience={self.patience}: needs held-out losses, and {missing}=0 turns them off")
        return self

    @field_validator("solve_data")
    @classmethod
    def _is_builtin(cls, value: str) -> str:
        if value.removeprefix("builtin:") not in MIXTURES or not value.startswith("builtin:"):
            raise ValueError(f"no built-in data; allowed: {', '.join(f'builtin:{name}' for name in MIXTURES)}")
        return value

    @property
    def mixture(self) -> str:
        """The built-in mixture of `solve_data`."""
        return self.solve_data.removeprefix("builtin:")
