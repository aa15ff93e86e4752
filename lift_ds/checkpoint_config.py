"""The part of the run config that says what is written and kept, and what is measured on the way."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from .source_config import Section


class CheckpointConfig(Section):
    """When the state is written, and what a run starts from."""

    save_every: int = Field(100, ge=0, description="steps between checkpoints; 0 writes only the last one")
    keep: int = Field(2, ge=1, description="newest checkpoints that are kept")
    best_by: Literal["none", "heldout_loss", "solve_rate"] = Field(
        "none",
        description="also keep the checkpoint that is best by the held-out loss, which compares methods, or by the "
        "solve rate of eval.solve_subset; each is measured when it is written, whatever eval.every and solve_every say",
    )
    export: Literal["last", "best"] = Field("last", description="which checkpoint the run exports at its end")
    resume: str = Field(
        "none",
        description="none, auto (newest whole checkpoint of output, if any), a checkpoint folder, or a file that names "
        "one (RUN/checkpoints/best)",
    )

    @model_validator(mode="after")
    def check_best(self) -> CheckpointConfig:
        """Checks that there is a best checkpoint to keep and export."""
        if self.best_by != "none" and not self.save_every:
            raise ValueError(
                f"checkpoint.best_by={self.best_by}: needs checkpoints to choose from, and checkpoint.save_every=0 "
                "writes only the last; set checkpoint.save_every, or checkpoint.best_by=none"
            )
        if self.export == "best" and self.best_by == "none":
            raise ValueError("checkpoint.export=best: needs checkpoint.best_by=heldout_loss or solve_rate")
        return self


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
