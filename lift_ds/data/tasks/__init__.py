"""Built-in tasks: procedural, verifiable, in levels from easy to hard, in pure Python."""

from .item import Item, Task, Verdict, draw_item, read_answer, split_of
from .mixture import MIXTURES, TASKS, TOP_CELLS, Cell, Mixture
from .pretraining import instruction, pretraining_text

__all__ = [
    "MIXTURES",
    "TASKS",
    "TOP_CELLS",
    "Cell",
    "Item",
    "Mixture",
    "Task",
    "Verdict",
    "draw_item",
    "instruction",
    "pretraining_text",
    "read_answer",
    "split_of",
]
