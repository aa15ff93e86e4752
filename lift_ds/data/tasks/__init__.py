"""Built-in tasks: procedural, verifiable, in pure Python."""

from .arithmetic import Arithmetic
from .countdown import Countdown
from .item import Item, Task, Verdict, draw_item, read_answer, split_of
from .pretraining import instruction, pretraining_text
from .sudoku import Sudoku

TASKS: dict[str, Task] = {task.name: task for task in (Countdown(), Sudoku(), Arithmetic())}

__all__ = [
    "TASKS",
    "Item",
    "Task",
    "Verdict",
    "draw_item",
    "instruction",
    "pretraining_text",
    "read_answer",
    "split_of",
]
