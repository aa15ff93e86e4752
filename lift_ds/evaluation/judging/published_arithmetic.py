"""Arithmetic as the published Countdown scorer means it, without `eval`: Python's numbers, `**` and `//` included."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable

from lift_ds.data.tasks.countdown import parse_expression

ALLOWED = re.compile(r"[\d+\-*/().\s]+")
LONGEST = 1000
MOST_BITS = 10_000
Number = int | float | complex
OPERATIONS: dict[type[ast.operator], Callable[[Number, Number], Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}


def evaluate(text: str) -> Number | None:
    """The value of a Python expression of numbers; `None` where it is none, fails, or is a power too large to compute.

    Differs: text above 1,000 characters and powers above 10,000 bits have no value; the published code hangs on the
    latter.
    """
    if len(text) > LONGEST or not ALLOWED.fullmatch(text):
        return None
    try:
        return value_of(parse_expression(text.strip()))
    except (SyntaxError, ArithmeticError, ValueError, TypeError, MemoryError, RecursionError):
        return None


def is_near(text: str, target: int, tolerance: float) -> bool:
    """Whether the text has a value within `tolerance` of `target`."""
    value = evaluate(text)
    try:
        return value is not None and bool(abs(value - target) < tolerance)
    except OverflowError:  # no float is as large as this complex number
        return False


def value_of(node: ast.expr) -> Number:
    """The value of one node.

    Raises:
        ValueError: It is no number and no arithmetic, or a power that is too large.
        ArithmeticError: A division by zero, or a float that is too large.
    """
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.UAdd | ast.USub):
        value = value_of(node.operand)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.BinOp):
        left, right = value_of(node.left), value_of(node.right)
        if isinstance(node.op, ast.Pow):
            return power(left, right)
        if type(node.op) in OPERATIONS:
            return OPERATIONS[type(node.op)](left, right)
    raise ValueError("not arithmetic")


def power(base: Number, exponent: Number) -> Number:
    """`base ** exponent`.

    Raises:
        ValueError: The result would have more than 10,000 bits.
    """
    if isinstance(base, int) and isinstance(exponent, int) and base.bit_length() * abs(exponent) > MOST_BITS:
        raise ValueError("a power too large to compute")
    result: Number = base**exponent
    return result
