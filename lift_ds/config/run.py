"""What is learned: the run config, which assembles the settings of the rooms.

How it runs (ZeRO stage, precision, micro-batch, clipping) is DeepSpeed's JSON, see `config.deepspeed`. A number lives
in one of the two.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, SerializeAsAny, field_validator, model_validator

from lift_ds.data.settings import DataConfig
from lift_ds.evaluation.settings import EvalConfig
from lift_ds.models.settings import LoraConfig, ModelConfig, profiled_steps
from lift_ds.objectives import make_objective, objective_settings, read_settings
from lift_ds.objectives.settings import ObjectiveSettings
from lift_ds.section import Section

from .training import CheckpointConfig, DifficultyConfig, OptimConfig, RuntimeConfig


class RunConfig(Section):
    """A whole run."""

    model: ModelConfig = Field(ModelConfig(), description="")
    lora: LoraConfig = Field(LoraConfig(), description="")
    data: DataConfig = Field(DataConfig(), description="")
    objective: SerializeAsAny[ObjectiveSettings] = Field(objective_settings(), description="")
    difficulty: DifficultyConfig = Field(DifficultyConfig(), description="")
    optim: OptimConfig = Field(OptimConfig(), description="")
    checkpoint: CheckpointConfig = Field(CheckpointConfig(), description="")
    eval: EvalConfig = Field(EvalConfig(), description="")
    runtime: RuntimeConfig = Field(RuntimeConfig(), description="")
    seed: int = Field(42, ge=0, description="seed of noise, order and new weights")
    output: str = Field("auto", description="run folder; auto: the next free number below runs/")
    log_every: int = Field(1, ge=1, description="steps between lines in metrics.jsonl and the display")

    @field_validator("objective", mode="before")
    @classmethod
    def by_method(cls, values: Any) -> Any:
        """The settings of the method that is named."""
        return read_settings(values) if isinstance(values, dict | ObjectiveSettings) else values

    @model_validator(mode="after")
    def check_numbers_fit(self) -> RunConfig:
        """Checks that hold between sections."""
        problems = []
        if self.checkpoint.best_by == "heldout_loss" and not self.eval.rows:
            problems.append(
                "checkpoint.best_by=heldout_loss: needs held-out rows, and eval.rows=0 turns them off; set eval.rows, "
                "or checkpoint.best_by=solve_rate or none"
            )
        if not self.difficulty.enabled and make_objective(self.objective).reads_difficulty:
            scoring = getattr(self.objective, "scoring", "")
            problems.append(f"objective.scoring={scoring} needs difficulty.enabled=true")
        steps = self.model.profile_steps and profiled_steps(self.model.profile_steps)
        if steps and steps[1] > self.optim.steps:
            problems.append(
                f"model.profile_steps={self.model.profile_steps}: the run ends after step {self.optim.steps}; name "
                "earlier steps, or raise optim.steps"
            )
        if problems:
            raise ValueError("\n".join(problems))
        return self
