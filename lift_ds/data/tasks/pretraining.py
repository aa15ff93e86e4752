"""Text and instructions for the small base model: the tasks' domains and answer format, but no solved item of a task.

The base learns that equations hold, what columns of digits sum to, what operations on digits give, which digit a cell
of a partial grid must have, which numbers a story tells of, how to copy from a question, and to write
`<answer>...</answer>`. How a question of a task is solved is left to fine-tuning. Sums and operations whose key is a
test item's do not occur; and as numbers of three digits are never added, no item of addition is solved.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from .addition import FEWEST_DIGITS, MOST_DIGITS, as_line, columns
from .arithmetic import MANY, MORE, NAMES, PLACES, THINGS, Arithmetic, pick
from .countdown import SMALLEST_OF_TWO, apply_sign, countdown_key
from .item import NUMBER, split_of
from .listops import draw_operation, listops_key
from .sudoku import BLANK, SYMBOLS, all_grids, as_rows, candidates, punch_holes

TURN = "<|start_header_id|>{role}<|end_header_id|>\n\n{content}<|eot_id|>"
Chat = tuple[str, str]
CARRIES: tuple[tuple[int, ...], ...] = ((), (0,), (1,))
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


def _equations(chance: random.Random) -> str:
    return "\n".join(_equation(chance) for _ in range(chance.randint(6, 12)))


def _equation(chance: random.Random) -> str:
    """A true one of two or three numbers; results between 0 and 99."""
    while True:
        largest = chance.choice((9, 20, 20, 40, 60))
        first, second, third = (chance.randint(0, largest) for _ in range(3))
        sign_a, sign_b = chance.choice("++--*"), chance.choice("+-")
        if sign_a == "*":
            first, second = chance.randint(1, 10), chance.randint(1, 10)
        middle = apply_sign(first, sign_a, second)
        if not 0 <= middle <= 99:
            continue
        if chance.random() < 0.5 and not _is_held_out(middle, first, second):
            return f"{first}{sign_a}{second}={middle}"
        last = apply_sign(middle, sign_b, third)
        if 0 <= last <= 99 and not _is_held_out(last, first, second, third):
            return f"{first}{sign_a}{second}{sign_b}{third}={last}"


def _echoes(chance: random.Random) -> str:
    """A list of words and numbers, written two or three times: what copying is learned from first."""
    entries = [
        chance.choice((str(chance.randint(0, 99)), *pick(NAMES, chance), *pick(THINGS, chance)))
        for _ in range(chance.randint(4, 10))
    ]
    return "\n".join([", ".join(entries)] * chance.randint(2, 3))


def signs(chance: random.Random) -> Chat:
    """Which signs an equation lacks, worked out: its numbers stand in their order."""
    expression, steps, value = _two_steps(chance)
    gaps = expression.replace("+", " ? ").replace("-", " ? ")
    return f"Which signs? {gaps} = {value}", f"{steps}\n<answer>{expression}</answer>"


def _worked_sum(chance: random.Random) -> Chat:
    """Of two or three numbers, or of a product and a number."""
    kind = chance.randrange(3)
    if kind == 0:
        expression, steps, value = _two_steps(chance)
    else:
        while True:
            first, second, third = chance.randint(2, 40), chance.randint(2, 20), chance.randint(2, 15)
            if kind == 1:
                sign = chance.choice("+-")
                expression, value = f"{first}{sign}{second}", apply_sign(first, sign, second)
                steps = f"{expression}={value}"
            else:
                first, second, sign = chance.randint(2, 5), chance.randint(2, 9), chance.choice("+-")
                product = first * second
                expression, value = f"{first}*{second}{sign}{third}", apply_sign(product, sign, third)
                steps = f"{first}*{second}={product}\n{product}{sign}{third}={value}"
            if 1 <= value <= 99:
                break
    return f"Work out {expression}.", f"{steps}\n<answer>{value}</answer>"


def _free_expression(chance: random.Random) -> Chat:
    """Of three given numbers and no target."""
    expression, steps, _ = _two_steps(chance)
    numbers = expression.replace("-", "+").split("+")
    chance.shuffle(numbers)
    question = chance.choice(
        ("Write an expression with {}, {} and {}.", "Combine {}, {} and {} with + - as you like.")
    ).format(*numbers)
    return question, f"{steps}\n<answer>{expression}</answer>"


def _two_steps(chance: random.Random) -> tuple[str, str, int]:
    """A sum of three numbers, its two steps and its value."""
    while True:
        first, second, third = (chance.randint(1, 20) for _ in range(3))
        sign_a, sign_b = chance.choice("+-"), chance.choice("+-")
        middle = apply_sign(first, sign_a, second)
        value = apply_sign(middle, sign_b, third)
        if 0 <= middle <= 99 and 0 <= value <= 99 and not _is_held_out(value, first, second, third):
            expression = f"{first}{sign_a}{second}{sign_b}{third}"
            return expression, f"{first}{sign_a}{second}={middle}\n{middle}{sign_b}{third}={value}", value


def _is_held_out(target: int, *numbers: int) -> bool:
    """Whether they are a test item of Countdown, whose solution must not occur here; two small numbers never are."""
    is_item = len(numbers) > 2 or min(numbers) >= SMALLEST_OF_TWO
    return is_item and split_of(countdown_key([*numbers], target)) == "test"


def _column_sums(chance: random.Random) -> str:
    """Sums of two digits and a carry, as addition writes them."""
    drawn = (
        (chance.randrange(10), chance.randrange(10), *chance.choice(CARRIES)) for _ in range(chance.randint(6, 12))
    )
    return "\n".join(map(as_line, drawn))


def _worked_columns(chance: random.Random) -> Chat:
    """Sums of three columns, which make no number."""
    drawn = [(chance.randrange(10), chance.randrange(10), *chance.choice(CARRIES)) for _ in range(3)]
    asked = [as_line(column).partition("=")[0] for column in drawn]
    return f"What are {asked[0]} and {asked[1]} and {asked[2]}?", "\n".join(map(as_line, drawn))


def _columns(chance: random.Random) -> Chat:
    """Which digits stand in the same place of two numbers: nothing is added."""
    num_digits = chance.randint(FEWEST_DIGITS, MOST_DIGITS)
    first, second = (chance.randrange(10 ** (num_digits - 1), 10**num_digits) for _ in range(2))
    pairs = "\n".join(f"{a}+{b}" for a, b, *_ in columns(first, second))
    return f"Columns of {first} and {second}.", f"<answer>{pairs}</answer>"


def small_addition(chance: random.Random) -> Chat:
    """Of numbers of two digits, in columns, as addition has them of three and four."""
    while True:
        first, second = chance.randint(10, 99), chance.randint(10, 99)
        if not _is_held_out(first + second, first, second):
            break
    lines = "\n".join(map(as_line, columns(first, second)))
    return f"Sum of {first} and {second} in columns.", f"{lines}\n<answer>{first + second}</answer>"


def _operations(chance: random.Random) -> str:
    """What operations on digits give; none is a test item of ListOps."""
    drawn = [draw_operation(chance) for _ in range(chance.randint(8, 14))]
    return "\n".join(f"{each}={each.value}" for each in drawn if split_of(listops_key(each)) == "train")


def worked_operations(chance: random.Random) -> Chat:
    """Two operations on digits, none of them a test item of ListOps."""
    drawn: list[str] = []
    values = []
    while len(drawn) < 2:
        operation = draw_operation(chance)
        if split_of(listops_key(operation)) == "train":
            drawn.append(str(operation))
            values.append(f"{operation}={operation.value}")
    return f"What are {' and '.join(drawn)}?", "\n".join(values)


def _inner_operation(chance: random.Random) -> Chat:
    inner = draw_operation(chance)
    return f"Innermost part of {draw_operation(chance, inner)}.", f"<answer>{inner}</answer>"


def _replaced_operation(chance: random.Random) -> Chat:
    """Any digit stands for the nested operation, not its value: nothing is solved."""
    inner, digit = draw_operation(chance), chance.randrange(10)
    outer = draw_operation(chance, inner)
    return f"Put {digit} for {inner} in {outer}.", f"<answer>{str(outer).replace(str(inner), str(digit))}</answer>"


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
        if not _is_held_out(int(value), *numbers):
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
    _worked_sum: 8,
    _free_expression: 3,
    signs: 5,
    _copied_grid: 1,
    _refilled_grid: 1,
    marked_cells: 3,
    _copied_story: 2,
    numbers_of_story: 4,
    _counted_things: 4,
    _columns: 2,
    small_addition: 2,
    _worked_columns: 4,
    worked_operations: 5,
    _inner_operation: 2,
    _replaced_operation: 2,
    _missing_symbol: 1,
    _change: 2,
}
DOCUMENTS: dict[Callable[[random.Random], str | Chat], int] = {
    _equations: 6,
    _echoes: 3,
    _worked_sum: 3,
    _free_expression: 2,
    signs: 2,
    _grids: 1,
    _copied_grid: 1,
    _refilled_grid: 1,
    marked_cells: 4,
    _wordings: 1,
    _copied_story: 2,
    numbers_of_story: 3,
    _counted_things: 2,
    _column_sums: 3,
    _columns: 1,
    small_addition: 2,
    _operations: 3,
    _inner_operation: 1,
    _replaced_operation: 1,
    _missing_symbol: 1,
    _change: 1,
}
