"""An evaluation: settled and checked first, then made in lockstep over the ranks, logged, and scored on the way."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

from lift_ds.evaluation.judging import SCORER_VERSIONS, AnsweredProblem, Problem, Score
from lift_ds.evaluation.problems import read_problems
from lift_ds.evaluation.score_file import ScoringPool
from lift_ds.evaluation.tasks import EVAL_TASKS
from lift_ds.ranks.shares import Ranks, equal_share
from lift_ds.sampling.block_rule import check_settings
from lift_ds.sampling.reverse import RowSeeds
from lift_ds.sampling.settings import SamplingSettings

from .answering import Answerer
from .protocol import Protocol
from .samples import Key, Sample, SampleLog

Unit = tuple[int, int]  # the number of a problem, and of an answer to it


@dataclass(frozen=True)
class TaskPlan:
    """One task of an evaluation.

    Args:
        name: The task.
        problems: As the protocol poses them.
        prompts: Token ids of each problem's prompt, the beginning of the answer included.
        process: How answers are made.
        num_samples: Answers to each problem.
        scorers: Who judges them; the first one's counts are shown on the way.
        keeps_special: Whether answers keep their special tokens, as the published scorers expect.
        protocol_hash: SHA-256 of all that the protocol says of the task.
    """

    name: str
    problems: list[Problem]
    prompts: list[list[int]]
    process: SamplingSettings
    num_samples: int
    scorers: list[str]
    keeps_special: bool
    protocol_hash: str

    def units(self) -> list[list[Unit]]:
        """All answers to be made, by problem."""
        return [[(index, sample) for sample in range(self.num_samples)] for index in range(len(self.problems))]

    def settings(self) -> dict[str, Any]:
        """What decides the answers, as JSON: two evaluations with the same are the same."""
        content = [[problem.question, problem.ground_truth, problem.entry_point] for problem in self.problems]
        return {
            "num_problems": len(self.problems),
            "problems_sha256": hashlib.sha256(json.dumps(content).encode()).hexdigest(),
            "prompts_sha256": hashlib.sha256(json.dumps(self.prompts).encode()).hexdigest(),  # tokenizer, chat template
            "protocol_sha256": self.protocol_hash,
            "num_samples": self.num_samples,
            "decoding": self.process.model_dump(),
        }


def plan_task(
    name: str, problems: Sequence[Problem], protocol: Protocol, process: SamplingSettings, num_samples: int,
    scorers: list[str], answerer: Answerer,
) -> TaskPlan:  # fmt: skip
    """Puts a task's problems as a protocol says.

    Raises:
        ValueError: A prompt and its answer are too long for the model, it cannot answer so, or samples of a problem
            would all be the same.
    """
    check_settings(process, answerer.model.config)
    if num_samples > 1 and process.temperature == 0 and process.remasking != "random":
        raise ValueError(f"{name}: {num_samples} samples at temperature 0 are all the same; set --temperature.")
    posed = [protocol.tasks[name].pose(problem) for problem in problems]
    turns = [protocol.tasks[name].turn(problem) for problem in posed]
    prompts = [answerer.prompt_ids([{"role": "user", "content": turn}], protocol.answer_prefix) for turn in turns]
    longest, problem = max(zip(prompts, posed, strict=True), key=lambda pair: len(pair[0]))
    if len(longest) + process.gen_length > answerer.encoder.max_length:
        raise ValueError(
            f"{problem.where}: a prompt of {len(longest)} tokens and --gen-length {process.gen_length} are longer than "
            f"the {answerer.encoder.max_length} tokens that the model was made for; make answers shorter, or leave the "
            "row out of the file."
        )
    return TaskPlan(
        name, posed, prompts, process, num_samples, scorers, not protocol.stop_early, protocol.fingerprint(name)
    )


def task_problems(name: str, protocol: Protocol, path: str | None, limit: int | None) -> list[Problem]:
    """The problems of a task under a protocol.

    Raises:
        ValueError: The protocol does not know the task, or its data cannot be read.
        ConnectionError: The hub does not answer.
    """
    if name not in protocol.tasks:
        raise ValueError(f"task {name!r}: allowed under this protocol are {', '.join(protocol.tasks)}.")
    return read_problems(name, path, limit if limit is not None else protocol.tasks[name].items)


def task_scorers(name: str, wanted: Sequence[str]) -> list[str]:
    """Those of the wanted scorers that a task has; its strict one where it has none of them.

    Raises:
        ValueError: A scorer is unknown.
    """
    for scorer in wanted:
        if scorer not in SCORER_VERSIONS:
            raise ValueError(f"scorer {scorer!r}: allowed are {', '.join(SCORER_VERSIONS)}.")
    return [scorer for scorer in wanted if EVAL_TASKS[name].scorer(scorer) is not None] or ["strict"]


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
