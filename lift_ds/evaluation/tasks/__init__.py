"""The table of evaluation tasks: a task is one file that ends in its row.

A task of one's own may be in any file. `tests/evaluation/test_own_task.py` has a whole one; its row, and its place in
the table that scoring, protocols and evaluations ask:

    TASK = EvalTask(name="parity", source="a.jsonl", read={("number", "parity"): read_row}, strict=strict, check=check)
    EVAL_TASKS[TASK.name] = TASK
"""

from . import builtin, code, countdown, gsm8k, maths, sudoku
from .task import EvalTask, Reader, Values

ROWS = (gsm8k.TASK, *maths.TASKS, countdown.TASK, sudoku.TASK, *code.TASKS, *builtin.TASKS)
EVAL_TASKS: dict[str, EvalTask] = {task.name: task for task in ROWS}

__all__ = ["EVAL_TASKS", "EvalTask", "Reader", "Values"]
