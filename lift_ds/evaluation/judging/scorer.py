"""What a scorer is given and what it says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .checks import Checks


@dataclass(frozen=True)
class Row:
    """One line of a file of generations.

    Args:
        question: What the model was asked.
        generations: One answer or more, with or without the tokens that end a turn.
        ground_truth: The task's own form of the right answer.
        where: File and line.
        entry_point: Name of the function that HumanEval's tests call; `None` where the line does not say.
    """

    question: str
    generations: tuple[str, ...]
    ground_truth: Any
    where: str
    entry_point: str | None = None


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


Scorer = Callable[[Row, str, Checks], Score]
"""From a row and one of its generations to a score."""


@dataclass(frozen=True)
class TaskScorers:
    """One row of the table of tasks.

    Args:
        reference: Counts as the published evaluation does; `None` where nothing is published.
        strict: Counts what is right.
        check_row: Raises ValueError where the row's question or ground truth is not of this task.
        parts: What `Score.total` counts.
        needs_maths: Whether the scorers read LaTeX, for which the extra `eval` is needed.
    """

    reference: Scorer | None
    strict: Scorer
    check_row: Callable[[Row], None]
    parts: str = "answers"
    needs_maths: bool = False
