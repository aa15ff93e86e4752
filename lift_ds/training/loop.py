"""The training loop: each step is planned together, computed micro-batch by micro-batch, checked, applied."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from lift_ds.config.run import RunConfig
from lift_ds.data.order.loader import StepBatch, StepLoader

from .buffers import DifficultyBuffers
from .engine import Engine
from .metrics import StepTotals
from .normalizer import document_scale, step_counts

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopRequest:
    """Whether this process was asked to stop; the ranks decide together when they do.

    It listens for as long as anything could be lost: a second signal must not end a save.
    """

    def __init__(self) -> None:
        """Nobody has asked yet."""
        self.signal_name: str | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Turns SIGTERM, SIGINT and SIGUSR1 into requests for the while."""
        before = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: Any) -> None:
        self.signal_name = signal.Signals(number).name


@dataclass(frozen=True)
class StepPlan:
    """What the ranks agreed on before a step.

    Args:
        batch: This rank's documents, `None` where reading them failed.
        totals: `step_counts` over all ranks.
        must_stop: Somebody was asked to stop, or could not read its data.
        problem: What went wrong on this rank, if anything.
    """

    batch: StepBatch | None
    totals: torch.Tensor
    must_stop: bool
    problem: Exception | None


@dataclass(frozen=True)
class Outcome:
    """How training ended.

    Args:
        step: Steps taken in all; fewer than `optim.steps` where a rank was asked to stop or could not read its data.
        problem: What this rank could not read, if anything; the steps before it are taken, and can be saved.
    """

    step: int
    problem: Exception | None


def plan_step(engine: Engine, loader: StepLoader, stop: StopRequest) -> StepPlan:
    """Fetches the next step and agrees on its totals, and on stopping, in one collective."""
    batch, problem = None, None
    try:
        batch = next(loader)
    except Exception as error:  # whatever it is, the other ranks must not wait for this one
        problem = error
    counts = torch.zeros(3, dtype=torch.float64)
    if batch is not None:
        counts = step_counts(batch.micro_batches, engine.root.objective)
    wants_stop = float(stop.signal_name is not None or problem is not None)
    agreed = engine.all_reduce(torch.cat([counts, torch.tensor([wants_stop], dtype=torch.float64)]))
    return StepPlan(batch, agreed[:3], bool(agreed[3]), problem)


def compute_step(
    engine: Engine, run: RunConfig, plan: StepPlan, step: int, buffers: DifficultyBuffers | None
) -> StepTotals:
    """Forwards and backwards of one step; gradients are accumulated, nothing is updated yet.

    Sample ids of micro-batches whose loss is not finite are noted in the totals.
    """
    assert plan.batch is not None
    micro_batches = plan.batch.micro_batches
    if engine.root.objective.reads_difficulty:
        assert buffers is not None
        micro_batches = buffers.fill(micro_batches)
    engine.root.dropout_key = (run.seed, step)
    totals = StepTotals()
    totals.add(num_tokens=plan.batch.num_tokens, num_skipped=plan.batch.num_skipped)
    totals.add(num_bad_rows=plan.batch.num_bad_rows)
    num_micro_batches = engine.num_micro_batches * engine.world_size
    for place, on_cpu in enumerate(micro_batches):
        scale = document_scale(on_cpu, run.objective.normalizer, plan.totals, num_micro_batches)
        batch = on_cpu.to(engine.device)
        loss, stats = engine.ds(batch, (scale * engine.loss_factor).to(engine.device))
        engine.ds.backward(loss)
        gradient_norm = engine.root.pop_gradient_norms(len(scale)) / engine.world_size
        totals.add(loss=float(loss.detach()) / engine.loss_factor)
        if not math.isfinite(totals.loss) and not totals.bad_sample_ids:
            totals.bad_sample_ids = on_cpu.sample_ids.tolist()
        is_real = on_cpu.sample_ids >= 0
        in_common, compared, by_chance = stats.agreement.tolist()
        totals.add(num_in_common=in_common, num_compared=compared, num_by_chance=by_chance)
        totals.add(scoring_seconds=engine.root.scoring_time.pop() / engine.world_size)
        shown = (stats.nll_sum.cpu(), stats.num_kept.cpu(), gradient_norm.cpu())
        totals.add_documents(on_cpu.t[is_real], on_cpu.component[is_real], *(each[is_real] for each in shown))
        if place + 1 < len(micro_batches):
            engine.ds.step()
    totals.replace(engine.all_reduce(totals.summed()), engine.all_reduce(totals.max_weight, "max"))
    return totals


def train_steps(
    engine: Engine,
    run: RunConfig,
    loader: StepLoader,
    first_step: int,
    stop: StopRequest,
    buffers: DifficultyBuffers | None,
    after_step: Callable[[int, dict[str, Any]], None],
) -> Outcome:
    """Trains from `first_step` to `optim.steps`, or until somebody asks to stop.

    Args:
        engine: The training engine.
        run: The run config.
        loader: Steps from `first_step` on.
        first_step: Steps already taken.
        stop: Whether this process was asked to stop.
        buffers: The difficulty table, where one is kept.
        after_step: Called on every rank with the number of steps taken and the step's metrics.

    Returns:
        Where and why it ended.

    Raises:
        RuntimeError: More than `optim.max_bad_steps` steps had a loss or gradient that is not finite.
    """
    num_bad = 0
    for step in range(first_step, run.optim.steps):
        began = time.perf_counter()
        position = loader.state
        plan = plan_step(engine, loader, stop)
        if plan.must_stop:
            loader.state = position  # the step was fetched, but is not taken
            return Outcome(step, plan.problem)
        totals = compute_step(engine, run, plan, step, buffers)
        rate = engine.set_learning_rate(step)
        grad_norm = engine.update()  # DeepSpeed leaves the step out on every rank where the norm is not finite
        is_bad = not (math.isfinite(totals.loss) and math.isfinite(grad_norm))
        observations = engine.root.pop_observations()
        if buffers is not None:
            buffers.observe([] if is_bad else observations, step + 1)
        record = totals.record(run.objective.time_scaling)
        if is_bad:
            num_bad += 1
            record["bad_sample_ids"] = samples = gather_bad_samples(engine, totals)
            if num_bad > run.optim.max_bad_steps:
                raise RuntimeError(
                    f"step {step + 1}: loss {totals.loss}, gradient norm {grad_norm}, samples {samples}; {num_bad} "
                    f"such steps were left out, optim.max_bad_steps={run.optim.max_bad_steps} are allowed. Look at the "
                    "samples, lower optim.lr or raise objective.t_min, and resume from the last checkpoint."
                )
        seconds = time.perf_counter() - began
        speed = record["num_tokens"] / seconds
        after_step(
            step + 1,
            record
            | {
                "num_bad_steps": num_bad,
                "grad_norm": grad_norm,
                "lr": rate,
                "seconds": seconds,
                "tokens_per_second": speed,
            },
        )
    return Outcome(run.optim.steps, None)


def gather_bad_samples(engine: Engine, totals: StepTotals) -> list[int]:
    """Sample ids, over all ranks, of the micro-batches that first had a loss that is not finite."""
    return sorted({sample for found in engine.gather_objects(totals.bad_sample_ids) for sample in found})
