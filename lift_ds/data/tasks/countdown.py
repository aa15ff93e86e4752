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
SIGNS = "+-"
SMALLEST_OF_TWO = 31  # the steps of other items, in which a test item would be solved, add no two numbers so large
# How many numbers, from where to where; one of a level's rows is drawn.
RANGES = (((2, SMALLEST_OF_TWO, 60),), ((3, 1, 9),), ((3, 1, 9), (3, 1, 20)))


class Countdown:
    """Two or three numbers and a target, with the steps written out; only + and -.

    Intermediate results stay between 0 and 99. Any expression that uses each number once and gives the target is right.
    Strata: the number of `operators`, and the `largest` of the numbers.
    """

    name = "countdown"
    levels = ("2 numbers", "3 numbers to 9", "3 numbers to 20")

    def propose(self, chance: random.Random, level: int) -> Item:
        """Draws a solvable item: the target is the value of a random expression."""
        count, smallest, largest = chance.choice(RANGES[level - 1])
        while True:
            numbers = [chance.randint(smallest, largest) for _ in range(count)]
            signs = [chance.choice(SIGNS) for _ in numbers[1:]]
            results = running_results(numbers, signs)
            if all(0 <= result <= 99 for result in results) and results[-1] > 0:
                break
        terms = list(zip(signs, numbers[1:], strict=True))
        expression = f"{numbers[0]}" + "".join(f"{sign}{number}" for sign, number in terms)
        steps = (
            f"{left}{sign}{number}={result}\n"
            for left, (sign, number), result in zip(results, terms, results[1:], strict=False)
        )
        shown = [*numbers]
        chance.shuffle(shown)
        listed = f"{', '.join(map(str, shown[:-1]))} and {shown[-1]}"
        question = chance.choice(QUESTIONS).format(numbers=listed, signs=" ".join(SIGNS), target=results[-1])
        response = f"{''.join(steps)}<answer>{expression}</answer>"
        strata = {"operators": len(signs), "largest": max(numbers)}
        return Item(self.name, question, response, countdown_key(numbers, results[-1]), level, strata)

    def verify(self, key: str, generation: str) -> Verdict:
        """Exact: parsed by `ast`, integers and + - * / only, fractions, each number used exactly once."""
        answer = read_answer(generation)
        if answer is None:
            return Verdict.UNPARSED
        try:
            value, used = evaluate_expression(answer)
        except ValueError:
            return Verdict.UNPARSED
        is_right = countdown_key(used, value) == key  # a value that is no integer is in no key
        return Verdict.SOLVED if is_right else Verdict.WRONG


def apply_sign(left: int, sign: str, right: int) -> int:
    """`left sign right` for +, - and *."""
    return left + right if sign == "+" else left - right if sign == "-" else left * right


def running_results(numbers: list[int], signs: list[str]) -> list[int]:
    """The first number, and what comes out after each of the signs, which stand before the other numbers."""
    results = [numbers[0]]
    for sign, number in zip(signs, numbers[1:], strict=True):
        results.append(apply_sign(results[-1], sign, number))
    return results


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
