"""Sudoku 4x4: cells, and whole grids.

On the 256 published generations `reference` counts 137 of 2,048 cells and no grid.
"""

from __future__ import annotations

import re
from functools import cache

from lift_ds.data.tasks.sudoku import BLANK, SYMBOLS, all_grids
from lift_ds.evaluation.judging import Checks, Problem, Score
from lift_ds.evaluation.judging.extraction import final_answer

from .task import EvalTask, Values

PUZZLE = re.compile(r"([0-9]{16})")
NAMED_PUZZLE = re.compile(r"Sudoku puzzle: ([0-9]{16})")
DIGITS_ONLY_FENCE = re.compile(r"```([\d\s]+)```")
DIGITS_BEFORE_TAG = re.compile(r"(\d{16})\s*</answer>")
SIXTEEN_DIGITS = re.compile(r"\b(\d{16})\b")
ENDS = ("<|eot_id|>", "<|endoftext|>")
NUM_CELLS = 16
SEPARATORS = re.compile(r"[\s|,\[\]+-]|```(?:\w*\n)?")


def read_row(values: Values, where: str) -> Problem:
    """`Puzzle` and `Solution`, 16 digits each: the form of d1's file."""
    puzzle, solution = (str(values[name]) for name in ("Puzzle", "Solution"))
    return Problem(f"Solve the following Sudoku puzzle: {puzzle}\n", solution, where)


def reference(problem: Problem, generation: str, checks: Checks) -> Score:
    """As published: cells of the first answer that some pattern finds, compared with the one stored solution.

    Source: d1's and LIFT's `parse_sudoku_answers`.

    Known faults, kept: other solutions of the same puzzle are wrong; givens may be overwritten; an answer is filled up
    with zeros or cut to 16 characters, whatever they are; text after the closing tag counts where the tag is empty.
    """
    answer = "".join(published_grid(generation).split())
    padded = answer[:NUM_CELLS].ljust(NUM_CELLS, BLANK)
    cells = _blank_cells(problem)
    correct = sum(padded[cell] == problem.ground_truth[cell] for cell in cells) if answer else 0
    return Score(correct, len(cells), answer or None, correct == len(cells))


def published_grid(text: str) -> str:
    """What the first of five patterns finds that is not blank: each is tried at its first place only."""
    after_opening, after_closing = text.partition("<answer>")[2], text.partition("</answer>")[2]
    fenced = DIGITS_ONLY_FENCE.search(after_opening)
    digits = DIGITS_BEFORE_TAG.search(text) or SIXTEEN_DIGITS.search(text)
    return (
        (fenced[1].strip() if fenced else "")
        or up_to_first(after_opening, (*ENDS, "</answer>"), must_end=True)
        or up_to_first(after_closing, ENDS, must_end=False)
        or (digits[1] if digits else "")
    )


def up_to_first(text: str, ends: tuple[str, ...], must_end: bool) -> str:
    """The text before the first of `ends`, stripped; all of it, or nothing where it must end, without one."""
    positions = [position for end in ends if (position := text.find(end)) >= 0]
    if not positions:
        return "" if must_end else text.strip()
    return text[: min(positions)].strip()


def strict(problem: Problem, generation: str, checks: Checks) -> Score:
    """The last closed box or tag: 16 digits that keep the givens and make a valid grid, any of the puzzle's solutions.

    The cells are those that agree with the nearest solution; a grid that changes a given solves nothing.
    """
    puzzle = puzzle_of(problem)
    cells = _blank_cells(problem)
    answer = final_answer(generation)
    grid = "" if answer is None or len(answer) > 10 * NUM_CELLS else SEPARATORS.sub("", answer)
    if len(grid) != NUM_CELLS or set(grid) - set(SYMBOLS + BLANK):
        return Score(0, len(cells), None, False)
    correct = max(sum(grid[cell] == solution[cell] for cell in cells) for solution in solutions(puzzle))
    return Score(correct, len(cells), grid, grid in solutions(puzzle))


@cache
def solutions(puzzle: str) -> tuple[str, ...]:
    """All valid grids that keep the givens of a puzzle."""
    return tuple(
        grid for grid in all_grids() if all(given in (BLANK, cell) for given, cell in zip(puzzle, grid, strict=True))
    )


def puzzle_of(problem: Problem) -> str:
    """The 16 cells that the question gives, blanks as 0: at its beginning, or after `Sudoku puzzle: `."""
    match = PUZZLE.match(problem.question) or NAMED_PUZZLE.search(problem.question)
    if not match:
        raise ValueError("question: sudoku needs the puzzle as 16 digits, first of all or after `Sudoku puzzle: `.")
    return match[1]


def _blank_cells(problem: Problem) -> list[int]:
    return [cell for cell, given in enumerate(puzzle_of(problem)) if given == BLANK]


def _check(problem: Problem) -> None:
    puzzle = puzzle_of(problem)
    if BLANK not in puzzle:
        raise ValueError(f"question: the puzzle {puzzle} has no blank (0) to fill.")
    if problem.ground_truth not in solutions(puzzle):
        raise ValueError(
            f"ground_truth={problem.ground_truth!r:.80}: not a solution of {puzzle}, as 16 digits from 1 to 4."
        )


TASK = EvalTask(
    name="sudoku",
    known_file="d1's 4x4_test_sudoku.csv",
    read={("Puzzle", "Solution"): read_row},
    reference=reference,
    strict=strict,
    check=_check,
    parts="cells",
)
