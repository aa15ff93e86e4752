r"""Whether two LaTeX answers are the same mathematical object: expression, equation, set, interval, tuple or matrix.

The reading and comparing is math-verify's, from its LaTeX grammar alone; its other reader, which evaluates Python text,
is not used. What it is lenient about is refused before or made exact: `(1,2)` is neither `[1,2]` nor `\{1,2\}` nor
`1,2`; decimals are fractions, not rounded; a percent is 1/100; `R` is not `r`. It runs in a child process (`checks`),
because it may compute for minutes.
"""

from __future__ import annotations

import logging
import re
from itertools import accumulate
from typing import Any

import sympy
from math_verify import LatexExtractionConfig, parse, verify

DIGITS = 50
logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its own time limit is off; its process has one


def is_equivalent(answer: str, truth: str) -> bool:
    """Whether the answer equals the truth; `False` where either cannot be read."""
    shapes = {shape(text) for text in (answer, truth)} - {""}
    if len(shapes) == 2 and shapes != {"{}", "list"}:  # both unordered
        return False
    letters = [single_letters(text) for text in (answer, truth)]
    if letters[0] != letters[1] and {name.lower() for name in letters[0]} == {name.lower() for name in letters[1]}:
        return False
    given, wanted = (read(text) for text in (answer, truth))
    if not given or not wanted:
        return False
    precision = {"float_rounding": DIGITS, "numeric_precision": DIGITS}
    return bool(verify(wanted, given, allow_set_relation_comp=True, timeout_seconds=None, **precision))


def shape(text: str) -> str:
    r"""The brackets of a list of parts, as `(]`; `{}` for a set, `list` without brackets, empty for one part.

    A name before `=` or `\in` is not looked at, nor are the parts of unions, which math-verify compares.
    """
    text = text.replace("\\left", "").replace("\\right", "").strip(" $.")
    text = text.rpartition("\\in ")[2].rpartition("=")[2].strip()
    if text.startswith("\\{") and text.endswith("\\}"):
        return "{}"
    depths = list(accumulate((character in "([{") - (character in ")]}") for character in text))
    comma_depths = {depth for depth, character in zip(depths, text, strict=True) if character == ","}
    if 0 in comma_depths:
        return "list"
    return text[0] + text[-1] if min(depths[:-1], default=0) > 0 and 1 in comma_depths and text[0] in "([" else ""


def single_letters(text: str) -> set[str]:
    """The letters that stand alone, outside commands and words: math-verify does not tell `R` from `r`."""
    return set(re.findall(r"(?<![A-Za-z])[A-Za-z](?![A-Za-z])", re.sub(r"\\[A-Za-z]+", " ", text)))


def read(text: str) -> list[Any]:
    """What math-verify reads in one formula, made exact; empty where it is none."""
    formula = text.replace("\\$", "").replace("$", "")
    grammar = [LatexExtractionConfig()]
    parsed = parse(f"${formula}$", extraction_config=grammar, fallback_mode="no_fallback", parsing_timeout=None)
    return [value if isinstance(value, str) else exact(value) for value in parsed]


def exact(expression: Any) -> Any:
    """The expression with decimals as fractions and percent signs as 1/100."""
    floats = {number: sympy.Rational(str(number)) for number in expression.atoms(sympy.Float)}
    percents = {atom: atom.args[0] for atom in expression.atoms(sympy.UnevaluatedExpr)}
    return expression.xreplace(floats | percents) if floats or percents else expression
