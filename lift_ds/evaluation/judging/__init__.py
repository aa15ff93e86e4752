"""How answers are judged: `reference` counts as the published evaluation does, `strict` counts what is right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .checks import Checks

SCORER_VERSIONS = {"reference": 1, "strict": 1}  # raised whenever a scorer's counts may change


@dataclass(frozen=True)
class Problem:
    """One problem of a task.

    Args:
        question: What the model is asked.
        ground_truth: The task's own form of the right answer.
        where: File and row.
        entry_point: Name of the function that HumanEval's tests call; `None` where the row does not say.
    """

    question: str
    ground_truth: Any
    where: str
    entry_point: str | None = None

    @property
    def test_text(self) -> str:
        """The ground truth as one text, of tasks whose ground truth is tests; MBPP's may be a list."""
        truth = self.ground_truth
        return "\n".join(truth) if isinstance(truth, list) else str(truth)


@dataclass(frozen=True)
class AnsweredProblem:
    """One line of a file of generations: one answer or more, with or without the tokens that end a turn."""

    problem: Problem
    generations: tuple[str, ...]


@dataclass(frozen=True)
class Score:
    """What one generation is worth.

    Args:
        correct: Parts that are right: 0 or 1, or cells of a grid.
        total: Parts that are asked for.
        answer: What was read as the answer; `None` where nothing was.
        is_solved: Whether the answer as a whole is right. Some grids have several solutions.
        timed_out: Whether its check was stopped at a limit.
    """

    correct: int
    total: int
    answer: str | None
    is_solved: bool
    timed_out: bool = False

    @property
    def is_parsed(self) -> bool:
        """Whether an answer was found."""
        return self.answer is not None


def whole_answer(answer: str | None, is_right: bool, timed_out: bool = False) -> Score:
    """The score of an answer that is right or wrong as a whole."""
    return Score(int(is_right), 1, answer, is_right, timed_out)


Scorer = Callable[[Problem, str, Checks], Score]  # from a problem and a generation to a score
