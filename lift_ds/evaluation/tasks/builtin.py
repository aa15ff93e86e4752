"""The built-in tasks: held-out items of their generators, judged by their own verifiers."""

from __future__ import annotations

from lift_ds.data.tasks import TASKS as GENERATORS
from lift_ds.data.tasks import Item, Verdict, draw_item, read_answer
from lift_ds.data.tasks import Task as Generator
from lift_ds.evaluation.judging import Checks, Problem, Score, whole_answer

from .task import EvalTask

SEED = 0
DRAWS_PER_ITEM = 100  # that may be needed to find an item that was not given yet


def task_of(generator: Generator) -> EvalTask:
    """The row of a generator; the ground truth of its problems is an item's key."""
    name = f"builtin:{generator.name}"

    def make(num_items: int) -> list[Problem]:
        problems: dict[str, Problem] = {}  # by question: none occurs twice
        for index in range(DRAWS_PER_ITEM * num_items):
            item = draw_item(generator, SEED, "test", index)
            problems.setdefault(item.question, Problem(item.question, item.key, f"{name}: test item {index}"))
            if len(problems) == num_items:
                return list(problems.values())
        raise ValueError(f"{name}: {num_items} items are asked for; it has about {len(problems)} different ones.")

    def strict(problem: Problem, generation: str, checks: Checks) -> Score:
        verdict = generator.verify(Item(generator.name, problem.question, "", problem.ground_truth), generation)
        answer = None if verdict is Verdict.UNPARSED else read_answer(generation)
        return whole_answer(answer, verdict is Verdict.SOLVED)

    def check(problem: Problem) -> None:
        truth = problem.ground_truth
        if not isinstance(truth, str) or not truth.startswith(f"{generator.name} "):
            raise ValueError(f"ground_truth={truth!r:.80}: {name} needs the key of an item.")

    return EvalTask(name=name, make=make, strict=strict, check=check)


TASKS = tuple(task_of(generator) for generator in GENERATORS.values())
