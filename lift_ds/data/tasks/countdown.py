"""Countdown: combine the given numbers, each once, to reach a target."""

from __future__ import annotations

import ast
import operator
import random
import threading
from collections.abc import Callable
from fractions import Fraction

from .item import Item, Verdict, read_answer

OPERATIONS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
LONGEST_EXPRESSION = 200
QUESTIONS = (
    "Use {numbers} once each with {signs} to make {target}.",
    "Make {target} from {numbers} with {signs}.",
    "Reach {target}: combine {numbers} with {signs}.",
)
_one_parse_at_a_time = threading.Lock()
LEVELS = {1: (9, "+-"), 2: (20, "+-"), 3: (12, "+-*")}


class Countdown:
    """Three numbers and a target, with the steps written out.

    Level 1 draws numbers from 1 to 9 and level 2 from 1 to 20, with + and -; level 3 draws from 1 to 12 and adds *.
    Intermediate results stay between 0 and 99. Any expression that uses each number once and gives the target is right.
    """

    name = "countdown"

    def __init__(self, levels: tuple[int, ...] = (1, 2)) -> None:
        self.levels = levels

    def propose(self, chance: random.Random) -> Item:
        """Draws a solvable item: the target is the value of a random expression."""
        largest, signs = LEVELS[chance.choice(self.levels)]
        while True:
            first, second, third = (chance.randint(1, largest) for _ in range(3))
            sign_a, sign_b = chance.choice(signs), chance.choice(signs)
            middle = apply_sign(first, sign_a, second)
            target = apply_sign(middle, sign_b, third)
            if 0 <= middle <= 99 and 0 < target <= 99:
                break
        shown = [first, second, third]
        chance.shuffle(shown)
        expression = f"{first}{sign_a}{second}{sign_b}{third}"
        if sign_b == "*" and sign_a != "*":
            expression = f"({first}{sign_a}{second})*{third}"
        steps = f"{first}{sign_a}{second}={middle}\n{middle}{sign_b}{third}={target}"
        question = chance.choice(QUESTIONS).format(
            numbers=f"{shown[0]}, {shown[1]} and {shown[2]}", signs=" ".join(signs), target=target
        )
        return Item(self.name, question, f"{steps}\n<answer>{expression}</answer>", countdown_key(shown, target))

    def verify(self, item: Item, generation: str) -> Verdict:
        """Exact: parsed by `ast`, integers and + - * / only, fractions, each number used exactly once."""
        answer = read_answer(generation)
        if answer is None:
            return Verdict.UNPARSED
        try:
            value, used = evaluate_expression(answer)
        except ValueError:
            return Verdict.UNPARSED
        is_right = countdown_key(used, value) == item.key  # a value that is no integer is in no key
        return Verdict.SOLVED if is_right else Verdict.WRONG


def apply_sign(left: int, sign: str, right: int) -> int:
    """`left sign right` for +, - and *."""
    return left + right if sign == "+" else left - right if sign == "-" else left * right


def countdown_key(numbers: list[int], target: int | Fraction) -> str:
    """What makes two items the same: the numbers in any order, and the target."""
    return f"countdown {sorted(numbers)} {target}"


def evaluate_expression(text: str) -> tuple[Fraction, list[int]]:
    """Value of an arithmetic expression, at most 200 characters long, and the integers in it, in reading order.

    Raises:
        ValueError: It is no expression of integers, parentheses and + - * /, or it divides by zero.
    """
    if len(text) > LONGEST_EXPRESSION:
        raise ValueError(f"expression of {len(text)} characters; at most {LONGEST_EXPRESSION} are read")
    used: list[int] = []

    def value_of(node: ast.expr) -> Fraction:
        if isinstance(node, ast.BinOp) and type(node.op) in OPERATIONS:
            return OPERATIONS[type(node.op)](value_of(node.left), value_of(node.right))
        if isinstance(node, ast.Constant) and type(node.value) is int:
            used.append(node.value)
            return Fraction(node.value)
        raise ValueError(f"not an integer or one of + - * /: {ast.dump(node)[:60]}")

    try:
        return value_of(parse_expression(text)), used
    except (SyntaxError, ZeroDivisionError, MemoryError, RecursionError) as error:
        raise ValueError(f"not an arithmetic expression: {error}") from error


def parse_expression(text: str) -> ast.expr:
    """The tree of a Python expression, in any number of threads.

    CPython 3.11 and 3.12 count the depth of a tree under construction in one place for all threads: where a garbage
    collection lets another thread in that parses, too, `ast.parse` ends in a SystemError (its issue 106905).

    Raises:
        SyntaxError: It is none.
        ValueError: It has a null character.
        MemoryError: It is nested too deeply.
        RecursionError: The same.
    """
    with _one_parse_at_a_time:
        return ast.parse(text, mode="eval").body
