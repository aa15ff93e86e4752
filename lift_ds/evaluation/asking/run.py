"""An evaluation: answers are made in lockstep over the ranks, logged, and scored while the next ones are made."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from itertools import chain

from lift_ds.evaluation.judging import AnsweredProblem, Score
from lift_ds.evaluation.score_file import ScoringPool
from lift_ds.ranks.shares import Ranks, equal_share
from lift_ds.sampling.reverse import RowSeeds

from .answering import Answerer
from .plan import TaskPlan, Unit
from .samples import Key, Sample, SampleLog


@dataclass
class TaskProgress:
    """What has been done of a task: its answers, and their scores by scorer, some of them still to come."""

    plan: TaskPlan
    samples: dict[Unit, Sample] = field(default_factory=dict)
    scoring: dict[tuple[str, Unit], Future[list[Score]]] = field(default_factory=dict)

    def add(self, sample: Sample, pool: ScoringPool) -> None:
        """Takes an answer and has it scored."""
        unit = (sample.index, sample.sample)
        self.samples[unit] = sample
        row = AnsweredProblem(self.plan.problems[sample.index], (sample.answer.text,))
        for scorer in self.plan.scorers:
            self.scoring[scorer, unit] = pool.submit(row, self.plan.name, scorer)

    def scores_so_far(self) -> list[Score]:
        """Scores of the first scorer that are known."""
        first = self.plan.scorers[0]
        known = [future for (scorer, _), future in self.scoring.items() if scorer == first and future.done()]
        return [future.result()[0] for future in known]

    def rows(self) -> list[AnsweredProblem]:
        """The problems with all their answers."""
        return [
            AnsweredProblem(problem, tuple(self.samples[unit].answer.text for unit in units))
            for problem, units in zip(self.plan.problems, self.plan.units(), strict=True)
        ]

    def scores(self, scorer: str) -> list[list[Score]]:
        """The scores of every problem's answers; waits for those to come."""
        return [[self.scoring[scorer, unit].result()[0] for unit in units] for units in self.plan.units()]


def evaluate(
    plans: Sequence[TaskPlan], answerer: Answerer, ranks: Ranks, batch_size: int, seed: int, log: SampleLog,
    pool: ScoringPool | None, on_change: Callable[[TaskProgress], object],
) -> list[TaskProgress]:  # fmt: skip
    """Makes what is missing in the log; every rank runs the same number of batches.

    An answer does not depend on its batch: neither on the ranks, nor on where an earlier evaluation was cut off. Only
    rank 0 has a `pool`, which scores the answers, reads and appends to the log, calls `on_change` with what the log has
    of a task and after each batch, and returns anything of use: what it has of each task.
    """
    logged: dict[Key, Sample] = {}

    def read_keys() -> set[Key]:
        logged.update(log.read())
        return set(logged)

    done = ranks.on_main(read_keys)  # other nodes may not see the file, and need no texts
    tasks_in_progress = []
    for plan in plans:
        progress = TaskProgress(plan)
        tasks_in_progress.append(progress)
        if pool is not None:
            for sample in logged.values():
                if sample.task == plan.name:
                    progress.add(sample, pool)
            on_change(progress)
        missing = [unit for unit in chain(*plan.units()) if (plan.name, *unit) not in done]
        missing.sort(key=lambda unit: -len(plan.prompts[unit[0]]))  # equal lengths together; the largest batch first
        step = batch_size * ranks.world_size
        for start in range(0, len(missing), step):
            began = time.perf_counter()
            mine = equal_share(missing[start : start + step], ranks)
            made = answer_units(plan, [unit for unit, _ in mine], answerer, seed)
            counted = [sample for sample, (_, counts) in zip(made, mine, strict=True) if counts]
            gathered = [sample for share in ranks.gather_objects(counted) for sample in share]
            if pool is not None:
                seconds = (time.perf_counter() - began) / len(gathered)
                timed = [replace(sample, seconds=seconds) for sample in gathered]
                log.append(timed)
                for sample in timed:
                    progress.add(sample, pool)
                on_change(progress)
    return tasks_in_progress


def answer_units(plan: TaskPlan, units: Sequence[Unit], answerer: Answerer, seed: int) -> list[Sample]:
    """Answers as one batch; their time is filled in later."""
    seeds = RowSeeds(tuple(f"{seed}/{plan.name}/{index}/{sample}" for index, sample in units))
    prompts = [plan.prompts[index] for index, _ in units]
    answers = answerer.answer(prompts, plan.process, seeds, keeps_special=plan.keeps_special)
    return [Sample(plan.name, *unit, answer) for unit, answer in zip(units, answers, strict=True)]
