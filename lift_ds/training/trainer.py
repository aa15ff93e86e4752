"""One run on one rank: resume, measure, train, save, measure again, export."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lift_ds.config.deepspeed import rows_per_micro_batch
from lift_ds.data.order.stream import merge_states
from lift_ds.data.text.chat_format import ChatFormat
from lift_ds.models.settings import profiled_steps
from lift_ds.models.weights import whole_shape
from lift_ds.objectives import Objective
from lift_ds.planning.report import Plan
from lift_ds.ranks.errors import AgreedError
from lift_ds.storage.best import offer, read_best
from lift_ds.storage.frozen_base import BaseRecord, hash_base
from lift_ds.storage.manifest import BEST, checkpoint_name, model_fingerprint, remove_old

from .checkpoint import DiskFullError, agree_on_main, check_space, load_checkpoint
from .efficiency import Efficiency
from .engine import Engine, has_accelerator
from .final_export import FinalExport
from .inputs import Prepared, chat_format_of, make_loader
from .loop import StopRequest, train_steps
from .measure import Measurements
from .memory import Difficulties, DifficultyMemory
from .metrics import MetricsFile
from .patience import Patience
from .profiling import StepProfile
from .progress import Progress
from .resumed import Resumed, find_together, require_same_settings
from .saving import Contents, Saver, UnderWay
from .spikes import Spikes
from .warm_up import warm_up


@dataclass
class Trainer:
    """One run on one rank.

    `resumed` is the run that goes on, by whose settings this one was started; `plan` says what this one will need.
    """

    prepared: Prepared
    ds_json: dict[str, Any]
    objective: Objective
    engine: Engine
    progress: Progress
    metrics: MetricsFile
    stop: StopRequest
    buffers: Difficulties | None
    resumed: Resumed | None
    plan: Plan

    def __post_init__(self) -> None:
        engine, self.run = self.engine, self.prepared.run
        self.checkpoints = Path(self.run.output) / "checkpoints"
        self.spikes = Spikes(self.run.optim.skip_above)
        self.resolved = {"run": self.run.model_dump(), "deepspeed": self.ds_json, "world_size": engine.world_size}
        # of all weights, adapters included
        self.fingerprint = model_fingerprint({name: whole_shape(each) for name, each in engine.root.named_parameters()})
        self.max_rows = rows_per_micro_batch(self.ds_json)
        self.patience = Patience(self.run.eval.patience)
        self.measurements = Measurements(
            self.prepared, engine, self.max_rows, self.progress, self.metrics.write, self.patience
        )

    @cached_property
    def base(self) -> BaseRecord | None:
        """The files of the frozen weights, where checkpoints hold adapters only: not without adapters or files."""
        if not self.run.lora.rank or self.run.model.from_scratch:
            return None
        folder, engine = self.prepared.folder, self.engine
        shares = engine.gather_objects(hash_base(folder, engine.rank, engine.world_size))
        return BaseRecord(str(folder.resolve()), {name: record for share in shares for name, record in share.items()})

    @cached_property
    def chat_format(self) -> ChatFormat:
        """How the run's chats become tokens."""
        return chat_format_of(self.prepared)

    @property
    def steps_to_profile(self) -> tuple[int, int] | None:
        """First and last step of this rank's profile; rank 0 alone has one."""
        wanted = self.run.model.profile_steps
        return profiled_steps(wanted) if wanted is not None and self.engine.rank == 0 else None

    def resume(self) -> int:
        """Restores the newest checkpoint if the config asks for it; returns the steps already taken."""
        wanted = self.run.checkpoint.resume
        checkpoint, passed_over = find_together(self.checkpoints, wanted, self.engine)
        for reason in passed_over:
            self.progress.say(f"passed over {reason}")
        if checkpoint is None:
            if wanted == "auto":
                self.progress.say(f"no checkpoint in {self.checkpoints.parent}: starting at step 0")
                self.metrics.write("resume", 0, {"checkpoint": None})
            return 0
        if self.resumed is not None:
            require_same_settings(self.resumed, checkpoint)
        step, lanes = load_checkpoint(self.engine, checkpoint, self.fingerprint, self.base)
        self.prepared.data.stream.load_state(lanes)
        if self.buffers is not None and not self.buffers.load(checkpoint, step):
            self.progress.say(f"{checkpoint} remembers no rows: it was written with another objective.scoring")
        for key, kept in (("optim.skip_above", self.spikes), ("eval.patience", self.patience)):
            if not kept.load(checkpoint):
                self.progress.say(f"{checkpoint} was written without {key}, which begins to compare now")
        self.progress.say(f"resumed from {checkpoint} at step {step}")
        self.metrics.write("resume", step, {"checkpoint": str(checkpoint)})
        if step < self.run.optim.steps:  # the run may have ended before it was measured
            self.consider(checkpoint, step)
        return step

    @cached_property
    def saver(self) -> Saver:
        """What writes this run's checkpoints."""
        comparisons = (self.spikes, self.patience)
        contents = Contents(
            self.resolved,
            self.prepared.folder,
            self.chat_format,
            self.fingerprint,
            self.buffers,
            comparisons,
            self.base,
        )
        return Saver(self.engine, self.checkpoints, contents, self.run.checkpoint.keep, self.tell_saved)

    def tell_saved(self, saved: UnderWay, messages: list[str]) -> None:
        """Says that a checkpoint is there."""
        self.progress.say(f"step {saved.step}: checkpoint {saved.final}")
        for message in messages:
            self.progress.say(message)
        seconds = {"stall_seconds": saved.stall_seconds, "seconds": saved.seconds}
        self.metrics.write("checkpoint", saved.step, {"path": str(saved.final), "behind": saved.behind, **seconds})

    def save(self, step: int, position: dict[str, Any]) -> None:
        """Writes a checkpoint, behind the training where that goes on; `position` is where this rank's data stands."""
        goes_on = self.run.checkpoint.async_save and step < self.run.optim.steps
        lanes = merge_states(self.engine.gather_objects(position))
        if not self.saver.begin(step, lanes, goes_on):
            if goes_on:
                self.progress.say(
                    f"step {step}: this checkpoint is written at once: a host has too little memory for a copy of the "
                    "state (checkpoint.async_save)"
                )
            self.saver.finish()

    def save_if_there_is_room(self, step: int, position: dict[str, Any]) -> bool:
        """Writes a checkpoint, or goes on without it where `checkpoint.on_full_disk` allows that; says which."""
        try:
            self.save(step, position)
        except DiskFullError as error:
            if self.run.checkpoint.on_full_disk == "stop" or step == self.run.optim.steps:
                raise
            self.progress.say(f"step {step}: {error} The run goes on without it (checkpoint.on_full_disk=skip).")
            self.metrics.write("no_checkpoint", step, {"problem": str(error)})
            return False
        return True

    def consider(self, checkpoint: Path, step: int) -> None:
        """Measures the model, whose checkpoint this is or will be, and keeps that as the best one if it is.

        A checkpoint of another run's folder is not kept there or here.

        Raises:
            RuntimeError: The pointer could not be written; on every rank.
        """
        settings = self.run.checkpoint
        if settings.best_by == "none":
            return
        measured = self.measurements.measured(settings.best_by, step)

        def choose(path: Path = checkpoint) -> str | None:
            if path.resolve().parent != self.checkpoints.resolve():
                return None
            message = offer(self.checkpoints, path, measured)
            if message is not None:
                remove_old(self.checkpoints, step, settings.keep)
            return None if message is None else f"step {step}: {message}"

        if self.saver.under_way is not None:
            self.saver.afterwards(choose)
            return
        message = agree_on_main(self.engine, choose, self.checkpoints / BEST)
        if message is not None:
            self.progress.say(message)

    def show(self, step: int, record: dict[str, Any]) -> None:
        """A step's record goes into the file, the display and DeepSpeed's monitors."""
        self.metrics.write("step", step, record)
        self.progress.show_step(step, record)
        self.engine.monitors.write_step(record, step)

    def warm_up(self, step: int) -> None:
        """Runs the largest micro-batch that may come, where the config asks for it and a step is left to take."""
        wanted, engine = self.run.model.warm_up, self.engine
        if step == self.run.optim.steps or not (has_accelerator() if wanted == "auto" else wanted):
            return
        max_length = self.prepared.data.encoder.max_length
        record, line = warm_up(engine, self.objective, self.plan, max_length)
        self.progress.say(line)
        self.metrics.write("warm_up", step, record)

    def fit(self) -> int:
        """Trains from the start or a checkpoint to the end or a stop signal; returns the steps taken in all."""
        self.engine.on_main(lambda: read_best(self.checkpoints))
        self.measurements.check()
        first_step = self.resume()
        check_space(self.engine, self.checkpoints, self.base is not None)
        self.warm_up(first_step)
        if first_step == 0:
            self.measurements.heldout(0)
            self.measurements.solving(0, "before")
        engine, run, saved_at = self.engine, self.run, first_step
        memory = self.buffers if isinstance(self.buffers, DifficultyMemory) else None
        loader = make_loader(self.prepared, self.max_rows, engine, first_step, memory)
        profiled = StepProfile(self.steps_to_profile, Path(run.output), self.progress.say)
        efficiency = Efficiency.of(run, self.prepared.config, engine)

        def after_step(step: int, record: dict[str, Any]) -> bool:
            nonlocal saved_at
            profiled.after(step)
            if "norm_limit" in record:
                limit = f"{record['norm_limit']:.3g}, {run.optim.skip_above:g} x the median of the last steps"
                self.progress.say(f"step {step}: left out, gradient norm {record['grad_norm']:.3g} is above {limit}")
            if step % run.log_every == 0 or step == run.optim.steps:
                self.show(step, record | efficiency.measured(record))
            self.saver.poll()
            self.measurements.between_steps(step)
            if run.checkpoint.save_every and step % run.checkpoint.save_every == 0:
                is_saved = self.save_if_there_is_room(step, loader.state)
                saved_at = step if is_saved else saved_at
                if step < run.optim.steps and is_saved:
                    self.consider(self.checkpoints / checkpoint_name(step), step)
            profiled.before(step + 1)
            return self.patience.is_over

        with closing(loader), closing(profiled):
            profiled.before(first_step + 1)
            step, problem = first_step, None
            try:
                if not self.patience.is_over:
                    more = (self.stop, self.buffers, self.spikes, after_step)
                    step, problem = train_steps(engine, run, self.objective, loader, first_step, *more)
            except AgreedError:
                self.saver.finish()
                raise
        if step > saved_at:
            self.save(step, loader.state)
        self.saver.finish()
        if problem is not None:
            raise problem
        return step

    def is_done(self, step: int) -> bool:
        """Whether a run that has taken these steps is at its end, and says so where that is early."""
        if self.patience.is_over and step < self.run.optim.steps:
            self.progress.say(
                f"step {step}: none of the last {self.patience.num_since} held-out losses was below "
                f"{self.patience.best:.4f}: eval.patience={self.patience.most} ends the run"
            )
        return self.patience.is_over or step == self.run.optim.steps

    def finish(self, step: int) -> None:
        """Measures the trained model, exports it, reloads the export and prints the summary."""
        self.measurements.heldout(step)
        self.measurements.solving(step, "after")
        self.consider(self.checkpoints / checkpoint_name(step), step)
        export = FinalExport(self.prepared, self.engine, self.ds_json["bf16"]["enabled"], self.checkpoints)
        logits = export.probe_logits()
        self.progress.close()
        if self.engine.rank == 0:
            export.write(logits)
        self.engine.barrier()  # no rank leaves the group, which may be a collective, before all do
