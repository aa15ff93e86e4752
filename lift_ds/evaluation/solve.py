"""Solve rates of the built-in tasks: greedy answers to held-out questions, strictly verified."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from lift_ds.data.chat import ChatEncoder
from lift_ds.data.tasks import TASKS, Item, Verdict, draw_item
from lift_ds.models.head import MaskedDiffusionModel
from lift_ds.sampling.reverse import ReverseProcess, pad_left

from .ranks import Ranks, equal_share

BATCH_SIZE = 64
VERDICTS = list(Verdict)


@dataclass(frozen=True)
class TaskScore:
    """Counts of one task's held-out items."""

    num_items: int
    num_solved: int
    num_unparsed: int

    @property
    def solve_rate(self) -> float:
        """Share of items solved."""
        return self.num_solved / max(self.num_items, 1)


@dataclass(frozen=True)
class SolveReport:
    """Scores by task, generated tokens per second over all ranks, and seconds."""

    scores: dict[str, TaskScore]
    tokens_per_second: float
    seconds: float


def held_out_items(num_items: int, seed: int) -> list[Item]:
    """Test items, the tasks in turn."""
    tasks = list(TASKS.values())
    return [draw_item(tasks[place % len(tasks)], seed, "test", place // len(tasks)) for place in range(num_items)]


def solve_items(
    model: MaskedDiffusionModel, encoder: ChatEncoder, items: list[Item], process: ReverseProcess, ranks: Ranks
) -> SolveReport:
    """Answers items greedily and counts the verdicts; every rank runs the same number of forwards.

    Args:
        model: In eval mode.
        encoder: Renders and tokenises the questions.
        items: All items, the same list on every rank.
        process: How answers are made.
        ranks: The run.
    """
    began = time.perf_counter()
    mine = equal_share(items, ranks)
    counts = torch.zeros(len(TASKS), len(VERDICTS), dtype=torch.float64)
    for start in range(0, len(mine), BATCH_SIZE):
        share = mine[start : start + BATCH_SIZE]
        texts = answer(model, encoder, [item.question for item, _ in share], process, ranks)
        for (item, is_counted), text in zip(share, texts, strict=True):
            verdict = TASKS[item.task].verify(item, text)
            counts[list(TASKS).index(item.task), VERDICTS.index(verdict)] += is_counted
    counts = ranks.all_reduce(counts)
    seconds = time.perf_counter() - began
    scores = {
        name: TaskScore(
            num_items=int(row.sum()),
            num_solved=int(row[VERDICTS.index(Verdict.SOLVED)]),
            num_unparsed=int(row[VERDICTS.index(Verdict.UNPARSED)]),
        )
        for name, row in zip(TASKS, counts, strict=True)
    }
    return SolveReport(scores, len(items) * process.gen_length / seconds, seconds)


def answer(
    model: MaskedDiffusionModel, encoder: ChatEncoder, questions: list[str], process: ReverseProcess, ranks: Ranks
) -> list[str]:
    """The model's answers to single-turn questions, as text up to the first end token."""
    prompts = [encoder.prompt_ids([{"role": "user", "content": question}]) for question in questions]
    prompt_ids, attention = pad_left(prompts, encoder.end_token_id)

    def any_rank(here: bool) -> bool:
        return bool(ranks.all_reduce(torch.tensor([float(here)], dtype=torch.float64), "max") > 0)

    made = process.run(model, prompt_ids.to(ranks.device), attention.to(ranks.device), any_rank=any_rank)
    return [encoder.answer_text(row) for row in made.ids[:, prompt_ids.shape[1] :].tolist()]
