"""Sudoku 4x4: puzzles with exactly one solution, split into train and test by their solution grid."""

from __future__ import annotations

import random
from functools import cache
from itertools import permutations

from .item import Item, Verdict, read_answer

SYMBOLS = "1234"
BLANK = "0"
BLANKS = ((2, 3), (4, 5), (6, 7), (5, 9))  # fewest and most of each level
QUESTION = "Solve this 4x4 Sudoku:\n{grid}"


class Sudoku:
    """4x4 grids, blanks written as 0, four rows of four digits; strata: the number of `blanks`."""

    name = "sudoku"
    levels = tuple(f"{fewest} to {most} blanks" for fewest, most in BLANKS)

    def propose(self, chance: random.Random, level: int) -> Item:
        """Draws a grid, then blanks cells in random order as long as the solution stays unique."""
        solution = chance.choice(all_grids())
        puzzle = punch_holes(solution, chance.randint(*BLANKS[level - 1]), chance)
        question = QUESTION.format(grid=as_rows(puzzle))
        response, strata = f"<answer>{as_rows(solution)}</answer>", {"blanks": puzzle.count(BLANK)}
        return Item(self.name, question, response, f"sudoku {solution}", level, strata)

    def verify(self, key: str, generation: str) -> Verdict:
        """Right where the answer is the one solution; unparsed where it is not four rows of four digits or blanks."""
        answer = read_answer(generation)
        if answer is None:
            return Verdict.UNPARSED
        rows = answer.split("\n")
        if len(rows) != 4 or any(len(row) != 4 or set(row) - set(SYMBOLS + BLANK) for row in rows):
            return Verdict.UNPARSED
        return Verdict.SOLVED if "".join(rows) == key.removeprefix("sudoku ") else Verdict.WRONG


@cache
def all_grids() -> tuple[str, ...]:
    """The 288 valid 4x4 grids, each as 16 digits, in lexicographic order."""
    rows = ["".join(row) for row in permutations(SYMBOLS)]

    def extend(grid: str) -> list[str]:
        if len(grid) == 16:
            return [grid]
        return [full for row in rows if _fits(grid + row) for full in extend(grid + row)]

    return tuple(extend(""))


def _fits(grid: str) -> bool:
    """Whether whole rows so far repeat no digit in a column or a 2x2 box."""
    columns = (grid[column::4] for column in range(4))
    boxes = (grid[start : start + 2] + grid[start + 4 : start + 6] for start in (0, 2, 8, 10) if len(grid) >= start + 6)
    return all(len(set(group)) == len(group) for group in (*columns, *boxes))


def punch_holes(solution: str, num_blanks: int, chance: random.Random) -> str:
    """Blanks up to `num_blanks` cells of `solution`, keeping it the only solution."""
    rivals = _rival_differences(solution)
    clues = (1 << 16) - 1
    for cell in chance.sample(range(16), 16):
        if 16 - clues.bit_count() == num_blanks:
            break
        fewer = clues & ~(1 << cell)
        if all(rival & fewer for rival in rivals):
            clues = fewer
    return "".join(digit if clues >> cell & 1 else BLANK for cell, digit in enumerate(solution))


def candidates(grid: str, cell: int) -> str:
    """The digits that no other cell of the same row, column or box has."""
    seen = {grid[other] for other in range(16) if other != cell and _are_rivals(cell, other)}
    return "".join(digit for digit in SYMBOLS if digit not in seen)


def _are_rivals(cell: int, other: int) -> bool:
    (row, column), (other_row, other_column) = divmod(cell, 4), divmod(other, 4)
    same_box = (row // 2, column // 2) == (other_row // 2, other_column // 2)
    return row == other_row or column == other_column or same_box


@cache
def _rival_differences(solution: str) -> tuple[int, ...]:
    """For each other grid, the cells where it differs from `solution`, as the bits of a 16-bit number."""
    return tuple(
        sum(1 << cell for cell in range(16) if grid[cell] != solution[cell]) for grid in all_grids() if grid != solution
    )


def as_rows(grid: str) -> str:
    """16 digits as four lines of four."""
    return "\n".join(grid[start : start + 4] for start in range(0, 16, 4))
