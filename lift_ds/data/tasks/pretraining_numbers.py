"""Texts and chats about numbers, for the small base model; see `pretraining`."""

from __future__ import annotations

import random

from .addition import FEWEST_DIGITS, MOST_DIGITS, as_line
from .addition import columns as digit_columns
from .countdown import SMALLEST_OF_TWO, apply_sign, countdown_key
from .item import split_of
from .listops import draw_operation, listops_key

Chat = tuple[str, str]
CARRIES: tuple[tuple[int, ...], ...] = ((), (0,), (1,))


def equations(chance: random.Random) -> str:
    """True ones, a line each."""
    return "\n".join(equation(chance) for _ in range(chance.randint(6, 12)))


def equation(chance: random.Random) -> str:
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
        if chance.random() < 0.5 and not is_held_out(middle, first, second):
            return f"{first}{sign_a}{second}={middle}"
        last = apply_sign(middle, sign_b, third)
        if 0 <= last <= 99 and not is_held_out(last, first, second, third):
            return f"{first}{sign_a}{second}{sign_b}{third}={last}"


def signs(chance: random.Random) -> Chat:
    """Which signs an equation lacks, worked out: its numbers stand in their order."""
    expression, steps, value = two_steps(chance)
    gaps = expression.replace("+", " ? ").replace("-", " ? ")
    return f"Which signs? {gaps} = {value}", f"{steps}\n<answer>{expression}</answer>"


def worked_sum(chance: random.Random) -> Chat:
    """Of two or three numbers, or of a product and a number."""
    kind = chance.randrange(3)
    if kind == 0:
        expression, steps, value = two_steps(chance)
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


def free_expression(chance: random.Random) -> Chat:
    """Of three given numbers and no target."""
    expression, steps, _ = two_steps(chance)
    numbers = expression.replace("-", "+").split("+")
    chance.shuffle(numbers)
    question = chance.choice(
        ("Write an expression with {}, {} and {}.", "Combine {}, {} and {} with + - as you like.")
    ).format(*numbers)
    return question, f"{steps}\n<answer>{expression}</answer>"


def two_steps(chance: random.Random) -> tuple[str, str, int]:
    """A sum of three numbers, its two steps and its value."""
    while True:
        first, second, third = (chance.randint(1, 20) for _ in range(3))
        sign_a, sign_b = chance.choice("+-"), chance.choice("+-")
        middle = apply_sign(first, sign_a, second)
        value = apply_sign(middle, sign_b, third)
        if 0 <= middle <= 99 and 0 <= value <= 99 and not is_held_out(value, first, second, third):
            expression = f"{first}{sign_a}{second}{sign_b}{third}"
            return expression, f"{first}{sign_a}{second}={middle}\n{middle}{sign_b}{third}={value}", value


def is_held_out(target: int, *numbers: int) -> bool:
    """Whether they are a test item of Countdown, whose solution must not occur here; two small numbers never are."""
    is_item = len(numbers) > 2 or min(numbers) >= SMALLEST_OF_TWO
    return is_item and split_of(countdown_key([*numbers], target)) == "test"


def column_sums(chance: random.Random) -> str:
    """Sums of two digits and a carry, as addition writes them."""
    drawn = (
        (chance.randrange(10), chance.randrange(10), *chance.choice(CARRIES)) for _ in range(chance.randint(6, 12))
    )
    return "\n".join(map(as_line, drawn))


def worked_columns(chance: random.Random) -> Chat:
    """Sums of three columns, which make no number."""
    drawn = [(chance.randrange(10), chance.randrange(10), *chance.choice(CARRIES)) for _ in range(3)]
    asked = [as_line(column).partition("=")[0] for column in drawn]
    return f"What are {asked[0]} and {asked[1]} and {asked[2]}?", "\n".join(map(as_line, drawn))


def columns(chance: random.Random) -> Chat:
    """Which digits stand in the same place of two numbers: nothing is added."""
    num_digits = chance.randint(FEWEST_DIGITS, MOST_DIGITS)
    first, second = (chance.randrange(10 ** (num_digits - 1), 10**num_digits) for _ in range(2))
    pairs = "\n".join(f"{a}+{b}" for a, b, *_ in digit_columns(first, second))
    return f"Columns of {first} and {second}.", f"<answer>{pairs}</answer>"


def small_addition(chance: random.Random) -> Chat:
    """Of numbers of two digits, in columns, as addition has them of three and four."""
    while True:
        first, second = chance.randint(10, 99), chance.randint(10, 99)
        if not is_held_out(first + second, first, second):
            break
    lines = "\n".join(map(as_line, digit_columns(first, second)))
    return f"Sum of {first} and {second} in columns.", f"{lines}\n<answer>{first + second}</answer>"


def operations(chance: random.Random) -> str:
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


def inner_operation(chance: random.Random) -> Chat:
    """Which part of nested operations is worked out first."""
    inner = draw_operation(chance)
    return f"Innermost part of {draw_operation(chance, inner)}.", f"<answer>{inner}</answer>"


def replaced_operation(chance: random.Random) -> Chat:
    """Any digit stands for the nested operation, not its value: nothing is solved."""
    inner, digit = draw_operation(chance), chance.randrange(10)
    outer = draw_operation(chance, inner)
    return f"Put {digit} for {inner} in {outer}.", f"<answer>{str(outer).replace(str(inner), str(digit))}</answer>"
