"""What a run measures on held-out data."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from lift_ds.sampling.settings import BlockLength, FixedSteps, GenLength, Steps


class EvalConfig(FixedSteps):
    """What is measured on held-out data."""

    prefix: ClassVar[str] = "eval."

    every: int = Field(100, ge=0, description="steps between held-out losses; 0 measures before and after only")
    path: str | list[str] | None = Field(
        None, description="held-out rows; default: eval.rows rows kept out of data.path"
    )
    rows: int = Field(32, ge=0, description="number of held-out rows; 0 turns the held-out loss off")
    solve_items: int = Field(0, ge=0, description="items of builtin:reasoning solved before and after; 0 turns it off")
    solve_every: int = Field(0, ge=0, description="steps between answers to eval.solve_subset while training; 0: none")
    solve_subset: int = Field(24, ge=1, description="items of builtin:reasoning answered so: the first of solve_items")
    gen_length: GenLength = 64
    block_length: BlockLength = 64
    steps: Steps = 64
