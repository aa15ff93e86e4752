"""How a run optimises, what it keeps, and the table of difficulties."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from lift_ds.section import Section


class OptimConfig(Section):
    """AdamW and its schedule."""

    steps: int = Field(1000, ge=1, description="optimizer steps of the whole run")
    global_batch: int = Field(8, ge=1, description="documents of one step, over all ranks and micro-batches")
    lr: float = Field(5e-6, gt=0, description="peak learning rate")
    schedule: Literal["linear", "cosine", "constant"] = Field("linear", description="course after the warm-up")
    warmup_ratio: float = Field(0.0, ge=0, lt=1, description="share of the steps with linear warm-up")
    min_lr_ratio: float = Field(0.0, ge=0, le=1, description="final learning rate over the peak (linear, cosine)")
    weight_decay: float = Field(0.1, ge=0, description="decoupled weight decay of matrices; norms have none")
    beta1: float = Field(0.9, ge=0, lt=1, description="decay of the first moment")
    beta2: float = Field(0.999, ge=0, lt=1, description="decay of the second moment")
    eps: float = Field(1e-8, gt=0, description="AdamW's epsilon")
    max_bad_steps: int = Field(
        3, ge=0, description="steps with a NaN or infinite loss or gradient that are left out before the run ends"
    )
    skip_above: float | None = Field(
        None,
        gt=1,
        description="leave out a step whose gradient norm is above this many times the median of the last 64; none: "
        "no step",
    )


class DifficultyConfig(Section):
    """The table of how hard each token is at each mask level."""

    enabled: bool = Field(True, description="keep the table; buffer and memory scoring need it")
    decay: float = Field(0.999, gt=0, le=1, description="factor of a step; 1 never forgets")
    sync_every: int = Field(
        20, ge=1, description="steps between exchanges of the ranks; memory scoring has one in each"
    )


class RuntimeConfig(Section):
    """What a run expects of its machines, and tells them."""

    nodes: int | None = Field(None, ge=1, description="machines that must take part; none: any number")
    timeout: float | None = Field(
        None,
        ge=0,
        description="minutes that a part of a step may take before every rank says where it is and the run ends; none: "
        "9/10 of DEEPSPEED_TIMEOUT; 0: never",
    )
    prometheus_file: str | None = Field(
        None,
        description="a .prom file that rank 0 writes its newest numbers to, in a folder that node_exporter's textfile "
        "collector reads; each run on a machine needs one of its own",
    )

    @field_validator("prometheus_file")
    @classmethod
    def check_prometheus_file(cls, path: str | None) -> str | None:
        """Checks that node_exporter would read it."""
        if path is not None and not path.endswith(".prom"):
            raise ValueError(f"runtime.prometheus_file={path}: node_exporter reads *.prom alone; name it {path}.prom")
        return path


class CheckpointConfig(Section):
    """When the state is written, and what a run starts from."""

    save_every: int = Field(100, ge=0, description="steps between checkpoints; 0 writes only the last one")
    keep: int = Field(2, ge=1, description="newest checkpoints that are kept")
    async_save: bool = Field(
        True,
        description="write checkpoints behind the training, from a copy in host memory: as much as a rank's part of "
        "one; where that is not there, and at the end of the run, they are written at once",
    )
    best_by: Literal["none", "heldout_loss", "solve_rate"] = Field(
        "none",
        description="also keep the checkpoint that is best by the held-out loss, which compares methods, or by the "
        "solve rate of eval.solve_subset; each is measured when it is written, whatever eval.every and solve_every say",
    )
    export: Literal["last", "best"] = Field("last", description="which checkpoint the run exports at its end")
    on_full_disk: Literal["stop", "skip"] = Field(
        "stop",
        description="where a checkpoint finds too little space: end the run, or say so and go on without it; the last "
        "one has to be written",
    )
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
