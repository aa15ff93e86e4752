r"""The published maths judge: what counts as an equal value where the text differs.

Source: LIFT's `eval/auto_scoring_judge.py` (divelab/LIFT at a95b858), which is OlympiadBench's, called with the ground
truth first and a precision of 1e-6. It makes 169 of d1's 162 on the 500 published MATH generations.

Known faults, kept:
- a number equals 100 times and 1/100 of itself (70 = 7000 = 0.7), and percent signs are dropped;
- every box of the answer counts as a part of it, without a box every `$...$` of the last line;
- `\approx` and `\sim` are read as `=`, and of an equation only what follows its first `=`;
- any two pairs in brackets of the same kind are compared as intervals, and only up to the shorter one;
- numbers are compared in floating point, with 1.01e-6 absolute.

It runs in a child process (`checks`), because sympy computes whatever the text says: `5^{5^{5^{5^5}}}` takes for
ever.
"""

from __future__ import annotations

import math
import re
from contextlib import suppress
from itertools import accumulate, pairwise
from typing import Any

import sympy
from sympy.parsing.latex import parse_latex

from .published import between, closing_brace

TOLERANCE = 1e-6 * 1.01
SYMBOLIC_TOLERANCE = 1e-3
LARGEST_EXPONENT = 1000
REPLACED = {
    "\\left": "",
    "\\right": "",
    "∶": ":",  # noqa: RUF001
    "，": ",",  # noqa: RUF001
    "$": "",
    "\\approx": "=",
    "\\simeq": "=",
    "\\sim": "=",
    "^\\prime": "'",
    "^{\\prime}": "'",
    "^\\circ": "",
    "%": "",
}
STRIPPED = "\n$,.:;^_=+`!@#$%^&*~，。"  # noqa: RUF001
FONT = re.compile(r"\\(?:mathrm|mathbf)\{~?([^}]*)\}")
CHINESE = re.compile(r"[\u4e00-\u9fff]+")


def is_same_value(answer: str, truth: str) -> bool:
    """Whether the parts of both, split at commas, pair up as equal."""
    try:
        truth, answer = prepared(truth), prepared(answer)
    except ValueError:
        return False
    if truth == answer:
        return True
    wanted, given = (parts(CHINESE.sub("", text)) for text in (truth, answer))
    if len(wanted) != len(given):
        return False
    index = -1
    while wanted:
        index = (index + 1) % len(wanted)
        match = next((part for part in given if is_equal_part(wanted[index], part)), None)
        if match is None:
            return False
        wanted.remove(wanted[index])
        given.remove(match)
    return True


def prepared(text: str) -> str:
    """The boxes, all closed, of a text, else the formulas of its last line, else itself; special signs replaced."""
    pieces = []
    for box in re.finditer(r"\\boxed\{", text):
        end = closing_brace(text, box.end() - 1)
        if end is None:
            raise ValueError("a box is not closed")
        pieces.append(text[box.end() : end] + ",")
    if not pieces:
        pieces = [formula + "," for formula in between(text.strip().split("\n")[-1], "$", "$")]
    text = "".join(pieces) or text
    if "\\in " in text:
        text = text.split("\\in ")[1]
    for sign, replacement in REPLACED.items():
        text = text.replace(sign, replacement)
    return FONT.sub(r"\1", text.strip(STRIPPED))


def parts(text: str) -> list[str]:
    r"""Splits at commas outside brackets; a part with `\pm` becomes two."""
    depths = accumulate((character in "([") - (character in ")]") for character in text)
    commas = [place for place, depth in enumerate(depths) if text[place] == "," and depth == 0]
    pieces = [text[a + 1 : b].strip() for a, b in pairwise([-1, *commas, len(text)]) if a + 1 < len(text)]
    signed = ([piece.replace("\\pm", sign) for sign in "+-"] if "\\pm" in piece else [piece] for piece in pieces)
    return [piece for both in signed for piece in both]


def is_equal_part(truth: str, answer: str) -> bool:
    """Whether two parts are the same text, interval, number, expression or equation; tried in this order."""
    if truth == answer and truth:
        return True
    if all(text.startswith(("(", "[")) and text.endswith((")", "]")) for text in (truth, answer)):
        try:
            if is_equal_interval(truth, answer):
                return True
        except Exception:  # sympy raises almost anything on text that is no formula
            return False
    both_equations = "=" in truth and "=" in answer
    for compare in (is_equal_number, is_equal_expression, is_equal_equation):
        with suppress(Exception):  # as above: not of this kind, so the next kind is tried
            if compare(truth, answer) and not (compare is is_equal_expression and both_equations):
                return True
    return False


def is_equal_number(truth: str, answer: str) -> bool:
    """Whether the answer is the truth, 100 times it or 1/100 of it."""
    value = float(truth)
    return any(abs(candidate - float(answer)) <= TOLERANCE for candidate in (value / 100, value, value * 100))


def is_equal_expression(truth: str, answer: str) -> bool:
    """Whether sympy finds the same expression or, to the tolerance, the same number."""
    sides = [side.split("=")[1] if "=" in side else side for side in (truth, answer)]
    first, second = (sympy.sympify(parse_latex(side.strip())) for side in sides)
    if first == second:
        return True
    first, second = (expression.subs(sympy.Symbol("pi"), math.pi) for expression in (first, second))
    if first.has(sympy.Symbol) != second.has(sympy.Symbol):
        return False
    if first.has(sympy.Symbol):
        return bool(abs(sympy.simplify(first - second).evalf()) < SYMBOLIC_TOLERANCE)
    if not (is_small_power(first) and is_small_power(second)):
        return False
    return bool(abs(first.evalf() - second.evalf()) <= TOLERANCE)


def is_small_power(expression: Any) -> bool:
    """Whether it is no power, or one with an exponent that can be computed; inner powers are not looked at."""
    if not isinstance(expression, sympy.Pow):
        return True
    base, exponent = expression.as_base_exp()
    return bool(base.is_number and exponent.is_number and abs(exponent.evalf()) <= LARGEST_EXPONENT)


def is_equal_equation(truth: str, answer: str) -> bool:
    """Whether one equation is an integer multiple of the other."""
    first, second = (left_minus_right(equation) for equation in (truth, answer))
    ratios = (sympy.simplify(first / second), sympy.simplify(second / first))
    return any(ratio.is_Integer and ratio != 0 for ratio in ratios)


def left_minus_right(equation: str) -> Any:
    """Left side minus right side of exactly one `=`, simplified."""
    left, right = (parse_latex(side) for side in equation.split("="))
    relation = sympy.Eq(left, right)  # true or false, without sides, of two numbers; the published code fails there
    return sympy.simplify(relation.lhs - relation.rhs)


def is_equal_interval(truth: str, answer: str) -> bool:
    r"""Whether unions of intervals have the same brackets and ends, one by one."""
    wanted, given = truth.split("\\cup"), answer.split("\\cup")
    if len(wanted) != len(given):
        return False
    for first, second in zip(wanted, given, strict=True):
        if first[0] != second[0] or first[-1] != second[-1]:
            return False
        ends = zip(first.strip("[]()").split(","), second.strip("[]()").split(","), strict=False)
        if not all(is_equal_expression(one, other) for one, other in ends):
            return False
    return True
