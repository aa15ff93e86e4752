"""The training loop: each step is planned together, computed micro-batch by micro-batch, checked, applied."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from lift_ds.config.run import RunConfig
from lift_ds.data.batch import MicroBatch
from lift_ds.data.order.loader import StepBatch, StepLoader
from lift_ds.objectives import Objective
from lift_ds.ranks.errors import AgreedError

from .engine import Engine
from .memory import Difficulties
from .metrics import StepTotals
from .normalizer import document_scale, step_counts
from .results import Observed, Shown, StepResult, read
from .routing import response_share
from .spikes import Spikes
from .timing import StepClock, peak_memory

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopRequest:
    """Whether this process was asked to stop; the ranks decide together when they do.

    It listens for as long as anything could be lost: a second signal must not end a save.
    """

    signal_name: str | None = None

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


def plan_step(
    engine: Engine, objective: Objective, loader: StepLoader, stop: StopRequest, clock: StepClock
) -> StepPlan:
    """Fetches the next step and agrees on its totals, and on stopping, in one collective."""
    batch, problem, counts = None, None, torch.zeros(3, dtype=torch.float64)
    try:
        with clock.part("data"):
            batch = next(loader)
    except Exception as error:  # whatever it is, the other ranks must not wait for this one
        problem = error
    else:
        counts = step_counts(batch.micro_batches, objective)
    wants_stop = float(stop.signal_name is not None or problem is not None)
    agreed = engine.all_reduce(torch.cat([counts, torch.tensor([wants_stop], dtype=torch.float64)]))
    return StepPlan(batch, agreed[:3], bool(agreed[3]), problem)


def compute_step(
    engine: Engine,
    run: RunConfig,
    objective: Objective,
    plan: StepPlan,
    step: int,
    buffers: Difficulties | None,
    clock: StepClock,
) -> tuple[StepTotals, float, list[tuple[MicroBatch, Observed]]]:
    """One optimizer step: forwards and backwards, and the update.

    DeepSpeed leaves the update out, on every rank, where the gradient norm is not finite.

    Returns:
        Totals over all ranks, but for this rank's `bad_sample_ids`; the gradient norm; and what each of this rank's
        passes showed of difficulty, with its micro-batch.
    """
    assert plan.batch is not None
    engine.gathers.begin()
    fetched, micro_batches = plan.batch, plan.batch.micro_batches
    if objective.reads_difficulty:
        assert buffers is not None
        micro_batches = buffers.fill(micro_batches)
    totals, results = StepTotals(engine.root.choices.shape), list[StepResult]()
    totals.add(num_tokens=fetched.num_tokens, num_skipped=fetched.num_skipped, num_bad_rows=fetched.num_bad_rows)
    for index, batch in enumerate(micro_batches):
        scale = document_scale(batch, run.objective.normalizer, plan.totals, engine.world_size * len(micro_batches))
        is_last = index + 1 == len(micro_batches)
        coefficient = run.model.router_aux_loss
        factor = coefficient * response_share(batch, plan.totals) if coefficient else None
        results.append(engine.forward_backward(batch, scale, (run.seed, step), clock, is_last, factor))
        if not is_last:
            engine.end_micro_batch()
    engine.trace.require_same(engine, step + 1)
    with clock.part("optimizer"):
        grad_norm = engine.update()
    seconds = clock.read()
    totals.add_rank(seconds, engine.gathers.read(), peak_memory(engine.device), engine)
    shown = read(results)
    for batch, each in zip(micro_batches, shown, strict=True):
        _add_shown(totals, batch, each, engine)
    totals.replace(engine.all_reduce(totals.summed()), engine.all_reduce(totals.maxima, "max"))
    pairs = zip(micro_batches, shown, strict=True)
    return totals, grad_norm, [(batch, observed) for batch, each in pairs for observed in each.observed]


def _add_shown(totals: StepTotals, batch: MicroBatch, shown: Shown, engine: Engine) -> None:
    in_common, compared, by_chance = shown.agreement.tolist()
    is_real = torch.tensor(batch.sample_ids) >= 0
    lengths = [length for length, number in zip(batch.lengths, batch.sample_ids, strict=True) if number >= 0]
    totals.add(
        loss=float(shown.loss) / engine.loss_factor,
        num_in_common=in_common,
        num_compared=compared,
        num_by_chance=by_chance,
        num_documents=len(lengths),
        num_input_tokens=shown.num_views * sum(lengths),
        num_attention_pairs=shown.num_views * sum(length * length for length in lengths),
    )
    if not math.isfinite(totals.loss) and not totals.bad_sample_ids:
        totals.bad_sample_ids = batch.sample_ids
    totals.add_weights(shown.weight_sums)
    totals.choices += shown.choices
    by_span = (batch.t, batch.component, shown.nll_sum, shown.num_kept, shown.gradient_norms / engine.world_size)
    counts = is_real
    if batch.span_length is not None:  # most blocks of a prompt have nothing to learn
        counts = batch.spans(batch.response_mask & is_real[:, None]).any(-1)
    totals.add_spans(*(values[counts] for values in by_span))


def train_steps(
    engine: Engine,
    run: RunConfig,
    objective: Objective,
    loader: StepLoader,
    first_step: int,
    stop: StopRequest,
    buffers: Difficulties | None,
    spikes: Spikes,
    after_step: Callable[[int, dict[str, Any]], bool | None],
) -> tuple[int, Exception | None]:
    """Trains from `first_step`, where `loader` stands, to `optim.steps`, or until somebody asks to stop.

    After each step every rank calls `after_step` with the number of steps taken and the step's metrics, which have a
    `norm_limit` where `spikes` had it left out; what returns true, on all of them, ends the training.

    Returns:
        Steps taken in all, fewer than `optim.steps` where a rank was asked to stop or could not read its data; and what
        this rank could not read, if anything: the steps before it are taken, and can be saved.

    Raises:
        AgreedError: More than `optim.max_bad_steps` steps had a loss or gradient that is not finite.
    """
    num_bad = num_left_out = 0
    for step in range(first_step, run.optim.steps):
        engine.activity.begin(step + 1)
        engine.trace.begin()
        clock = StepClock(engine)
        position = loader.state
        plan = plan_step(engine, objective, loader, stop, clock)
        if plan.must_stop:
            engine.activity.rest()
            loader.state = position  # the step was fetched, but is not taken
            return step, plan.problem
        if buffers is not None:
            buffers.release()
        rate = engine.set_learning_rate(step)
        engine.norm_limit = spikes.limit
        totals, grad_norm, observed = compute_step(engine, run, objective, plan, step, buffers, clock)
        is_bad = not (math.isfinite(totals.loss) and math.isfinite(grad_norm))
        if buffers is not None:
            buffers.take([] if is_bad else observed, step + 1)
        spikes.note(grad_norm)
        record = totals.record(run.objective.time_scaling)
        if grad_norm > engine.norm_limit and not is_bad:
            record["norm_limit"] = engine.norm_limit
            num_left_out += 1
        if is_bad:
            num_bad += 1
            samples = sorted({sample for of_rank in engine.gather_objects(totals.bad_sample_ids) for sample in of_rank})
            record["bad_sample_ids"] = samples
            if num_bad > run.optim.max_bad_steps:
                raise AgreedError(
                    f"step {step + 1}: loss {totals.loss}, gradient norm {grad_norm}, samples {samples}; {num_bad} "
                    f"such steps were left out, optim.max_bad_steps={run.optim.max_bad_steps} are allowed. Look at the "
                    "samples, lower optim.lr or raise objective.t_min, and resume from the last checkpoint."
                )
        rest = clock.rest()
        for part in ("communication", "other"):
            record[f"{part}_seconds"] += rest[part]
            record["slowest_seconds"][part] += rest[part]
        record |= {"num_bad_steps": num_bad, "num_left_out_steps": num_left_out, "grad_norm": grad_norm, "lr": rate}
        record["seconds"] = rest["seconds"]
        engine.activity.rest()
        if after_step(step + 1, record | {"tokens_per_second": record["num_tokens"] / rest["seconds"]}):
            return step + 1, None
    return run.optim.steps, None
