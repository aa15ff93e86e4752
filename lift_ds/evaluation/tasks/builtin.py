"""The built-in tasks, all levels or one of them: held-out items of their generators, judged by their own verifiers."""

from __future__ import annotations

from lift_ds.data.tasks import MIXTURES, Verdict, read_answer
from lift_ds.data.tasks import TASKS as GENERATORS
from lift_ds.evaluation.judging import Checks, Problem, Score, whole_answer

from .task import EvalTask

SEED = 0
DRAWS_PER_ITEM = 100  # that may be needed to find an item that was not given yet


def task_of(mixture_name: str) -> EvalTask:
    """The row of some levels of the tasks; a problem's ground truth is its item's key, which begins with the task."""
    name = f"builtin:{mixture_name}"
    mixture = MIXTURES[mixture_name]
    tasks = sorted({cell.task for cell in mixture.cycle})

    def make(num_items: int) -> list[Problem]:
        problems: dict[str, Problem] = {}  # by question: none occurs twice
        for row in range(DRAWS_PER_ITEM * num_items):
            cell, index = mixture.place(row)
            item = cell.draw(SEED, "test", index)
            where = f"builtin:{cell}: test item {index}"
            problems.setdefault(item.question, Problem(item.question, item.key, where))
            if len(problems) == num_items:
                return list(problems.values())
        raise ValueError(f"{name}: {num_items} items are asked for; it has about {len(problems)} different ones.")

    def strict(problem: Problem, generation: str, checks: Checks) -> Score:
        key = str(problem.ground_truth)
        verdict = GENERATORS[key.split(" ", 1)[0]].verify(key, generation)
        answer = None if verdict is Verdict.UNPARSED else read_answer(generation)
        return whole_answer(answer, verdict is Verdict.SOLVED)

    def check(problem: Problem) -> None:
        truth = problem.ground_truth
        if not isinstance(truth, str) or truth.split(" ", 1)[0] not in tasks:
            raise ValueError(f"ground_truth={truth!r:.80}: {name} needs the key of an item of {' or '.join(tasks)}.")

    return EvalTask(name=name, make=make, strict=strict, check=check)


TASKS = tuple(task_of(name) for name in MIXTURES)
