"""What an evaluation will do, settled and checked before the first answer is made."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lift_ds.evaluation.judging import SCORER_VERSIONS, Problem
from lift_ds.evaluation.problems import read_problems
from lift_ds.evaluation.tasks import EVAL_TASKS
from lift_ds.sampling.settings import SamplingSettings

from .answering import Answerer
from .protocol import Protocol

Unit = tuple[int, int]
"""Number of a problem, and of an answer to it."""


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
        ValueError: A prompt and its answer are longer than the model allows, or samples of a problem would all be the
            same.
    """
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
