"""Solve rates: greedy answers to questions, each judged by its own checker; the built-in tasks' held-out items."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, fields
from functools import partial
from typing import Any

import torch

from lift_ds.data.tasks import MIXTURES, TASKS, Item, Verdict
from lift_ds.data.text.chat import ChatEncoder
from lift_ds.data.text.chat_format import ChatFormat
from lift_ds.models.head import MaskedDiffusionModel
from lift_ds.ranks.shares import Ranks, agreement, equal_share
from lift_ds.sampling.reverse import check_length
from lift_ds.sampling.settings import SamplingSettings

from .answering import Answerer

BATCH_SIZE = 64


@dataclass(frozen=True)
class Question:
    """A question, counted under `task`, and the judge of its answers, which are never evaluated as code."""

    task: str
    text: str
    check: Callable[[str], Verdict]


@dataclass(frozen=True)
class TaskScore:
    """Counts of one task's items; `num_forwards` adds up what each answer took."""

    num_items: int
    num_solved: int
    num_unparsed: int
    num_truncated: int
    num_forwards: int

    @property
    def solve_rate(self) -> float:
        """Share of items solved."""
        return self.num_solved / max(self.num_items, 1)

    @property
    def parse_failure_rate(self) -> float:
        """Share of items whose answer is not well-formed."""
        return self.num_unparsed / max(self.num_items, 1)

    @property
    def truncation_rate(self) -> float:
        """Share of items whose answer does not end within the length."""
        return self.num_truncated / max(self.num_items, 1)

    @property
    def forwards_per_item(self) -> float:
        """Forwards of the model that an answer takes."""
        return self.num_forwards / max(self.num_items, 1)

    @classmethod
    def total(cls, scores: Sequence[TaskScore]) -> TaskScore:
        """The counts of all items of some scores."""
        return cls(*(sum(getattr(score, each.name) for score in scores) for each in fields(cls)))


@dataclass(frozen=True)
class SolveReport:
    """What answers to questions came to.

    Args:
        scores: By what questions are counted under.
        solved: Which questions are, in their order.
        tokens_per_second: Generated tokens, over all ranks.
        seconds: How long it took.
    """

    scores: dict[str, TaskScore]
    solved: list[bool]
    tokens_per_second: float
    seconds: float

    @property
    def total(self) -> TaskScore:
        """The score of all."""
        return TaskScore.total(list(self.scores.values()))

    @property
    def by_task(self) -> dict[str, TaskScore]:
        """The scores of tasks, all levels together."""
        groups: dict[str, list[TaskScore]] = {}
        for name, score in self.scores.items():
            groups.setdefault(name.partition("/")[0], []).append(score)
        return {task: TaskScore.total(scores) for task, scores in groups.items()}


def held_out_items(num_items: int, seed: int, mixture: str = "reasoning") -> list[Item]:
    """Test items of a built-in mixture: each level of a task has its share of them."""
    return [MIXTURES[mixture].item(seed, "test", row) for row in range(num_items)]


def builtin_questions(num_items: int, seed: int, mixture: str = "reasoning") -> list[Question]:
    """`held_out_items` as questions, strictly verified and counted by `<task>/<level>`."""
    return [
        Question(f"{item.task}/{item.level}", item.question, partial(TASKS[item.task].verify, item.key))
        for item in held_out_items(num_items, seed, mixture)
    ]


def solve_questions(
    model: MaskedDiffusionModel,
    encoder: ChatEncoder,
    questions: Sequence[Question],
    process: SamplingSettings,
    ranks: Ranks,
    system: str | None = None,
) -> SolveReport:
    """Answers questions, the same list on every rank, greedily and counts the verdicts.

    Every rank runs the same number of forwards.

    Raises:
        ValueError: There are no questions, or one and its answer are longer than the model allows; on every rank.
    """
    began = time.perf_counter()
    answerer = Answerer(model, encoder, agreement(ranks), ranks.device)
    prompts = encode_questions(encoder, questions, process, model.config, system)
    mine = equal_share(list(enumerate(prompts)), ranks)
    counts = torch.zeros(len(questions), len(fields(TaskScore)), dtype=torch.float64)
    for start in range(0, len(mine), BATCH_SIZE):
        share = mine[start : start + BATCH_SIZE]
        answers = answerer.answer([prompt for (_, prompt), _ in share], process)
        for ((number, _), is_counted), answer in zip(share, answers, strict=True):
            verdict = questions[number].check(answer.text)
            is_solved, is_unparsed = verdict is Verdict.SOLVED, verdict is Verdict.UNPARSED
            score = TaskScore(1, is_solved, is_unparsed, not answer.is_ended, answer.num_forwards)
            counts[number] += is_counted * torch.tensor(astuple(score), dtype=torch.float64)
    results = [TaskScore(*row) for row in ranks.all_reduce(counts).long().tolist()]
    seconds = time.perf_counter() - began
    by_task: dict[str, list[TaskScore]] = {}
    for question, result in zip(questions, results, strict=True):
        by_task.setdefault(question.task, []).append(result)
    scores = {task: TaskScore.total(each) for task, each in by_task.items()}
    solved = [bool(result.num_solved) for result in results]
    return SolveReport(scores, solved, len(questions) * process.gen_length / seconds, seconds)


def encode_questions(
    encoder: ChatEncoder,
    questions: Sequence[Question],
    process: SamplingSettings,
    config: Any,
    system: str | None = None,
) -> list[list[int]]:
    """Token ids of all questions as prompts; a ValueError before a rank that has too long a one would stop alone."""
    asked = ChatFormat(system=system)
    prompts = [encoder.prompt_ids(asked.messages([{"role": "user", "content": each.text}])) for each in questions]
    check_length(process, max(map(len, prompts), default=0), config)
    return prompts
