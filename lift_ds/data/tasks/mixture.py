"""Which tasks and levels follow each other, and how often: one table of weights, and what is made of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .addition import Addition
from .arithmetic import Arithmetic
from .countdown import Countdown
from .item import Item, Task, draw_item
from .listops import ListOps
from .sudoku import Sudoku

TASKS: dict[str, Task] = {task.name: task for task in (Addition(), Countdown(), Sudoku(), ListOps(), Arithmetic())}
# Rows of each level in a cycle of `reasoning`. Levels weigh the same, so that each has its share of few held-out items;
# those of `TOP` have twice as many, as they need most examples, and are compared with earlier versions.
WEIGHTS = {
    "addition": (2, 2, 2, 2),
    "countdown": (2, 2, 4),
    "sudoku": (2, 2, 2, 4),
    "listops": (2, 2, 2),
    "arithmetic": (2, 2, 4),
}
TOP = ("countdown", "sudoku", "arithmetic")
"""The tasks whose highest levels, in turn, were all of the built-in data once: `reasoning/top`."""


@dataclass(frozen=True)
class Cell:
    """A level, counted from 1, of a task."""

    task: str
    level: int

    def __str__(self) -> str:
        return f"{self.task}/{self.level}"

    def draw(self, seed: int, split: str, index: int) -> Item:
        """Item number `index` of a split; see `draw_item`."""
        return draw_item(TASKS[self.task], self.level, seed, split, index)


class Mixture:
    """Rows without end, which repeat one cycle of cells, each spread evenly over it; row numbers decide everything.

    Args:
        weights: How many rows of a cycle a cell has.
    """

    def __init__(self, weights: Mapping[Cell, int]) -> None:
        spread = [((turn + 0.5) / count, cell) for cell, count in weights.items() for turn in range(count)]
        self.cycle = [cell for _, cell in sorted(spread, key=lambda entry: entry[0])]

    def place(self, row: int) -> tuple[Cell, int]:
        """The cell of a row, and which item of the cell it is: the first has number 0."""
        num_cycles, position = divmod(row, len(self.cycle))
        cell = self.cycle[position]
        return cell, num_cycles * self.cycle.count(cell) + self.cycle[:position].count(cell)

    def item(self, seed: int, split: str, row: int) -> Item:
        """The item of a row."""
        cell, index = self.place(row)
        return cell.draw(seed, split, index)


LEVELS = {Cell(task, level): weight for task, weights in WEIGHTS.items() for level, weight in enumerate(weights, 1)}
TOP_CELLS = tuple(Cell(task, len(WEIGHTS[task])) for task in TOP)
MIXTURES: dict[str, Mixture] = {
    "reasoning": Mixture(LEVELS),
    "reasoning/top": Mixture(dict.fromkeys(TOP_CELLS, 1)),
    **{task: Mixture({cell: weight for cell, weight in LEVELS.items() if cell.task == task}) for task in TASKS},
    **{str(cell): Mixture({cell: 1}) for cell in LEVELS},
}
"""By the name that stands behind `builtin:`."""
