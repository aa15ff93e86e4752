"""The built-in tasks, judged by their own verifiers."""

from __future__ import annotations

from lift_ds.data.tasks import TASKS, Item, Verdict, read_answer

from .checks import Checks
from .scorer import Row, Score, TaskScorers, whole_answer


def scorers_of(name: str) -> TaskScorers:
    """The scorers of a built-in task, by its name; the ground truth is an item's key."""
    task = TASKS[name]

    def strict(row: Row, generation: str, checks: Checks) -> Score:
        verdict = task.verify(Item(name, row.question, "", row.ground_truth), generation)
        answer = None if verdict is Verdict.UNPARSED else read_answer(generation)
        return whole_answer(answer, verdict is Verdict.SOLVED)

    def check_row(row: Row) -> None:
        if not isinstance(row.ground_truth, str) or not row.ground_truth.startswith(f"{name} "):
            raise ValueError(f"ground_truth={row.ground_truth!r:.80}: builtin:{name} needs the key of an item.")

    return TaskScorers(None, strict, check_row)
