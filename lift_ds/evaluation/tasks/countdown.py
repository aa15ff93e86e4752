"""Countdown: an expression of the given numbers that makes the target; any one is right.

On the 256 published generations `reference` counts 50. It computes without Python's `eval`, what `eval` would.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable
from typing import Any

from lift_ds.data.tasks.countdown import evaluate_expression, parse_expression
from lift_ds.evaluation.judging import Checks, Problem, Score, whole_answer
from lift_ds.evaluation.judging.extraction import final_answer
from lift_ds.evaluation.judging.published import first_answer_tag, last_box

from .task import EvalTask, Values

PUBLISHED_SIGNS = (("\\div", "/"), ("\\times", "*"), ("\\cdot", "*"))
SIGNS = (*PUBLISHED_SIGNS, ("×", "*"), ("·", "*"), ("÷", "/"), ("−", "-"))  # noqa: RUF001
DELETED = ("\\left", "\\right", "\\,", "\\;", "\\!", "\\ ", "\\(", "\\)", "\\[", "\\]", "$")
FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
BRACKETS = str.maketrans("[]{}", "()()")
LONGEST = 1000
BEFORE_EQUALS = re.compile(r"(?<![0-9+*/() -])[0-9+*/() -]+(?==[0-9. ])")  # tried at no other place: linear
TOLERANCE = 1e-5
ALLOWED = re.compile(r"[\d+\-*/().\s]+")
MOST_BITS = 10_000
Number = int | float | complex


def read_row(values: Values, where: str) -> Problem:
    """`input` is `49,55,53`, `output` the target: the form of d1's file; `nums` and `target` on the hub."""
    names = ("nums", "target") if "nums" in values else ("input", "output")
    given, target = values[names[0]], _whole_number(values[names[1]], names[1])
    if isinstance(given, str):
        given = given.split(",")
    if not isinstance(given, list):
        raise ValueError(f"{names[0]} is {given!r:.60}; a list of whole numbers is needed.")
    numbers = [_whole_number(number, names[0]) for number in given]
    return Problem(f"Numbers: {numbers}\nTarget: {target}", [numbers, target], where)


def _whole_number(value: Any, column: str) -> int:
    text = str(value).strip()
    if isinstance(value, bool) or not re.fullmatch(r"[+-]?\d{1,300}", text):
        raise ValueError(f"{column} has {text[:60]!r}; a whole number is needed.")
    return int(text)


def reference(problem: Problem, generation: str, checks: Checks) -> Score:
    """As published: the last box, what stands before its first `= number`, in floating point to 1e-5.

    Source: d1's and LIFT's `parse_countdown_answers`. It reads the first answer tag only where the last box is not
    closed, and the whole text where there is neither.

    Known faults, kept: `**`, `//` and signs of numbers are allowed (`2**3` uses 2 and 3); `3.0` counts as the numbers
    3 and 0. The published code calls Python's `eval`, and hangs on `9**9**9**9`; see `evaluate`.
    """
    numbers, target = problem.ground_truth
    places = (last_box(generation), first_answer_tag(generation), generation)
    answer = next(text for text in places if text is not None)
    for sign, replacement in PUBLISHED_SIGNS:
        answer = answer.replace(sign, replacement)
    if arithmetic := BEFORE_EQUALS.search(answer):
        answer = arithmetic[0].strip()
    if len(answer) > LONGEST or sorted(map(int, re.findall(r"\d+", answer))) != sorted(numbers):
        return whole_answer(answer, False)
    return whole_answer(answer, is_near(answer, target, TOLERANCE))


def _power(base: Number, exponent: Number) -> Number:
    if isinstance(base, int) and isinstance(exponent, int) and base.bit_length() * abs(exponent) > MOST_BITS:
        raise ValueError("a power too large to compute")
    result: Number = base**exponent
    return result


OPERATIONS: dict[type[ast.operator], Callable[[Number, Number], Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Pow: _power,
}


def evaluate(text: str) -> Number | None:
    """The value of a Python expression of numbers; `None` where it is none, fails, or is a power too large to compute.

    Differs: text above 1,000 characters and powers above 10,000 bits have no value; the published code hangs on the
    latter.
    """
    if len(text) > LONGEST or not ALLOWED.fullmatch(text):
        return None
    try:
        return _value_of(parse_expression(text.strip()))
    except (SyntaxError, ArithmeticError, ValueError, TypeError, MemoryError, RecursionError):
        return None


def is_near(text: str, target: int, tolerance: float) -> bool:
    """Whether the text has a value within `tolerance` of `target`."""
    value = evaluate(text)
    try:
        return value is not None and bool(abs(value - target) < tolerance)
    except OverflowError:  # no float is as large as this complex number
        return False


def _value_of(node: ast.expr) -> Number:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.UAdd | ast.USub):
        value = _value_of(node.operand)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATIONS:
        return OPERATIONS[type(node.op)](_value_of(node.left), _value_of(node.right))
    raise ValueError("not arithmetic")


def strict(problem: Problem, generation: str, checks: Checks) -> Score:
    """The last closed box or tag: an expression with + - * / that uses each number once and makes the target exactly.

    What follows `=` must have the target's value, too. `evaluate_expression` reads it, with fractions.
    """
    answer = final_answer(generation)
    if answer is None or len(answer) > LONGEST:
        return whole_answer(None, False)
    numbers, target = problem.ground_truth
    try:
        (value, used), *others = (evaluate_expression(side.strip()) for side in plain_expression(answer).split("="))
    except ValueError:
        return whole_answer(None, False)
    results = (value, *(one for one, _ in others))
    is_right = sorted(used) == sorted(numbers) and all(result == target for result in results)
    return whole_answer(answer, is_right)


def plain_expression(text: str) -> str:
    """LaTeX signs, fractions and brackets as + - * / ( )."""
    for sign, replacement in (*SIGNS, *((piece, "") for piece in DELETED)):
        text = text.replace(sign, replacement)
    return FRACTION.sub(r"((\1)/(\2))", text).translate(BRACKETS).strip(" .\n")


def _check(problem: Problem) -> None:
    match problem.ground_truth:
        case [[*numbers], int()] if numbers and all(type(number) is int for number in numbers):
            return
    raise ValueError(
        f"ground_truth={problem.ground_truth!r:.80}: countdown needs [[numbers], target], all of them integers."
    )


TASK = EvalTask(
    name="countdown",
    known_file="d1's countdown_cd3_test.jsonl",
    read={("input", "output"): read_row, ("nums", "target"): read_row},
    reference=reference,
    strict=strict,
    check=_check,
)
