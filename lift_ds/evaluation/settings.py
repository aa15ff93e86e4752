"""What a run measures on held-out data."""

from __future__ import annotations

from pydantic import Field

from lift_ds.section import Section


class EvalConfig(Section):
    """What is measured on held-out data."""

    every: int = Field(100, ge=0, description="steps between held-out losses; 0 measures before and after only")
    path: str | list[str] | None = Field(
        None, description="held-out rows; default: eval.rows rows kept out of data.path"
    )
    rows: int = Field(32, ge=0, description="number of held-out rows; 0 turns the held-out loss off")
    solve_items: int = Field(0, ge=0, description="items of the builtin tasks solved before and after; 0 turns it off")
    solve_every: int = Field(0, ge=0, description="steps between answers to eval.solve_subset while training; 0: none")
    solve_subset: int = Field(24, ge=1, description="items of the builtin tasks answered so: the first of solve_items")
    steps: int = Field(64, ge=1, description="denoising steps of an answer")
    gen_length: int = Field(64, ge=1, description="most tokens of an answer")
    block_length: int = Field(64, ge=1, description="tokens of a block, denoised before the next one begins")
