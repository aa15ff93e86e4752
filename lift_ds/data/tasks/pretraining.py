"""Text and instructions for the small base model: the tasks' domains and answer format, but no solved item of a task.

The base learns that equations hold, what columns of digits sum to, what operations on digits give, which digit a cell
of a partial grid must have, which numbers a story tells of, how to copy from a question, and to write
`<answer>...</answer>`. How a question of a task is solved is left to fine-tuning. Sums and operations whose key is a
test item's do not occur; and as numbers of three digits are never added, no item of addition is solved.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from .arithmetic import MANY, MORE, NAMES, PLACES, THINGS, Arithmetic, pick
from .item import NUMBER, split_of
from .pretraining_numbers import (
    Chat,
    column_sums,
    columns,
    equations,
    free_expression,
    inner_operation,
    is_held_out,
    operations,
    replaced_operation,
    signs,
    small_addition,
    worked_columns,
    worked_operations,
    worked_sum,
)
from .sudoku import BLANK, SYMBOLS, all_grids, as_rows, candidates, punch_holes

TURN = "<|start_header_id|>{role}<|end_header_id|>\n\n{content}<|eot_id|>"
FEWEST_BLANKS, MOST_BLANKS = 5, 9  # with one digit in five blanks no grid is solved
MARK, MOST_MARKED, FEWEST_LEFT = "?", 3, 3  # cells of a grid that are asked for, at most; blanks that stay, at least


def pretraining_text(seed: int, split: str, index: int) -> str:
    """Document number `index` of the endless text of a split, `train` or `test`, special tokens written out.

    It is plain lines, or a chat in the LLaDA template.
    """
    chance = random.Random(f"pretraining/{seed}/{split}/{index}")
    document = chance.choices(list(DOCUMENTS), weights=list(DOCUMENTS.values()))[0](chance)
    if isinstance(document, str):
        return "<|startoftext|>" + document
    user, assistant = document
    return "<|startoftext|>" + TURN.format(role="user", content=user) + TURN.format(role="assistant", content=assistant)


def instruction(seed: int, split: str, index: int) -> Chat:
    """Chat number `index`, as (question, answer); arguments as in `pretraining_text`."""
    chance = random.Random(f"instructions/{seed}/{split}/{index}")
    return chance.choices(list(INSTRUCTIONS), weights=list(INSTRUCTIONS.values()))[0](chance)


def _echoes(chance: random.Random) -> str:
    """A list of words and numbers, written two or three times: what copying is learned from first."""
    entries = [
        chance.choice((str(chance.randint(0, 99)), *pick(NAMES, chance), *pick(THINGS, chance)))
        for _ in range(chance.randint(4, 10))
    ]
    return "\n".join([", ".join(entries)] * chance.randint(2, 3))


def _missing_symbol(chance: random.Random) -> Chat:
    """What a row, column or box of a grid lacks."""
    *given, missing = chance.sample(SYMBOLS, len(SYMBOLS))
    return f"Which of 1 2 3 4 is not in {' '.join(given)}?", f"<answer>{missing}</answer>"


def _change(chance: random.Random) -> Chat:
    """Whether words of a story tell of more or of less: nothing is worked out."""
    sign, n = chance.choice("+-"), chance.randint(2, 20)
    (name, friend), (place,) = pick(NAMES, chance, 2), pick(PLACES, chance)
    phrase = chance.choice(MANY.gains if sign == "+" else MANY.losses).format(n=n, friend=friend, place=place)
    return f"More or less? {name} {phrase}.", f"{MORE[sign]}: {sign}{n}\n<answer>{MORE[sign]}</answer>"


def _partial_grid(chance: random.Random) -> str:
    while True:
        grid = chance.choice(all_grids())
        if split_of(f"sudoku {grid}") == "train":
            return as_rows(punch_holes(grid, chance.randint(FEWEST_BLANKS, MOST_BLANKS), chance))


def _grids(chance: random.Random) -> str:
    return "\n\n".join(_partial_grid(chance) for _ in range(3))


def _copied_grid(chance: random.Random) -> Chat:
    grid = _partial_grid(chance)
    return f"Copy this 4x4 grid:\n{grid}", f"<answer>{grid}</answer>"


def _refilled_grid(chance: random.Random) -> Chat:
    """All blanks become one digit: the clues are copied, nothing is solved."""
    grid, digit = _partial_grid(chance), chance.choice("1234")
    return f"Put {digit} for every 0 of this 4x4 grid:\n{grid}", f"<answer>{grid.replace(BLANK, digit)}</answer>"


def marked_cells(chance: random.Random) -> Chat:
    """Some blanks for which row, column and box leave one digit: they are filled, and others stay blank."""
    while True:
        grid = _partial_grid(chance).replace("\n", "")
        only = {cell: left for cell in range(16) if grid[cell] == BLANK and len(left := candidates(grid, cell)) == 1}
        num_marked = min(chance.randint(1, MOST_MARKED), len(only), grid.count(BLANK) - FEWEST_LEFT)
        if num_marked > 0:
            break
    asked, filled = [*grid], [*grid]
    for cell in chance.sample(sorted(only), num_marked):
        asked[cell], filled[cell] = MARK, only[cell]
    return (
        f"Fill every {MARK} of this 4x4 grid:\n{as_rows(''.join(asked))}",
        f"<answer>{as_rows(''.join(filled))}</answer>",
    )


def _story(chance: random.Random) -> str:
    """The question of a word problem."""
    task = Arithmetic()
    return task.propose(chance, chance.randint(1, len(task.levels))).question


def _wordings(chance: random.Random) -> str:
    """Questions of word problems, unanswered."""
    return "\n".join(_story(chance) for _ in range(2))


def _copied_story(chance: random.Random) -> Chat:
    question = _story(chance)
    return f"Repeat: {question}", question


def numbers_of_story(chance: random.Random) -> Chat:
    """What a story tells, as an expression whose value is not worked out."""
    task = Arithmetic()
    while True:
        item = task.propose(chance, chance.randint(1, len(task.levels)))
        _, _, expression, value = item.key.split()
        numbers = [int(number) for number in NUMBER.findall(expression)]
        if not is_held_out(int(value), *numbers):
            return f"As numbers: {item.question}", f"<answer>{expression}</answer>"


def _counted_things(chance: random.Random) -> Chat:
    """Who has how many: a look-up, no arithmetic."""
    names, (things,) = pick(NAMES, chance, 3), pick(THINGS, chance)
    amounts = [chance.randint(1, 40) for _ in names]
    facts = " ".join(f"{name} has {amount} {things}." for name, amount in zip(names, amounts, strict=True))
    asked = chance.randrange(3)
    line = f"{names[asked]} has {amounts[asked]} {things}."
    return f"{facts} How many {things} does {names[asked]} have?", f"{line}\n<answer>{amounts[asked]}</answer>"


INSTRUCTIONS: dict[Callable[[random.Random], Chat], int] = {
    worked_sum: 8,
    free_expression: 3,
    signs: 5,
    _copied_grid: 1,
    _refilled_grid: 1,
    marked_cells: 3,
    _copied_story: 2,
    numbers_of_story: 4,
    _counted_things: 4,
    columns: 2,
    small_addition: 2,
    worked_columns: 4,
    worked_operations: 5,
    inner_operation: 2,
    replaced_operation: 2,
    _missing_symbol: 1,
    _change: 2,
}
DOCUMENTS: dict[Callable[[random.Random], str | Chat], int] = {
    equations: 6,
    _echoes: 3,
    worked_sum: 3,
    free_expression: 2,
    signs: 2,
    _grids: 1,
    _copied_grid: 1,
    _refilled_grid: 1,
    marked_cells: 4,
    _wordings: 1,
    _copied_story: 2,
    numbers_of_story: 3,
    _counted_things: 2,
    column_sums: 3,
    columns: 1,
    small_addition: 2,
    operations: 3,
    inner_operation: 1,
    replaced_operation: 1,
    _missing_symbol: 1,
    _change: 1,
}
