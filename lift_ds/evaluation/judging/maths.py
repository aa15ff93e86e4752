r"""MATH-500 and AIME: answers in LaTeX.

On the 500 published MATH generations `reference` counts 169 and `strict` 176: the seven more are right answers that the
published rules miss (`36.00` for `\$36`, `15` for `15\mbox{ cm}^2`, `east` for `\text{east}`, `C` for `\text{(C)}`,
`7! \times 2!` for `10,\!080`, a matrix after `=`, `12 cm` for `12`).
"""

from __future__ import annotations

import math
import re

from .checks import Checks
from .extraction import final_answer
from .numbers import is_equal_in_base, is_equal_quantity, read_quantity
from .published import first_answer_tag, is_same_text, last_box
from .scorer import Row, Score, whole_answer

TEXT = re.compile(r"\\(?:text|textbf|mathrm|mbox|textrm)\s*\{([^{}]*)\}")
WORDS = re.compile(r"[A-Za-z][A-Za-z '-]*")
CHOICE = re.compile(r"\(?([A-Z])\)?")


def reference(row: Row, generation: str, checks: Checks) -> Score:
    """As published: d1's last box, compared as cleaned text (162 of 500), else by OlympiadBench's judge (169).

    Source: LIFT's `eval/scoring.py`; `published` and `published_judge` name the rules and their faults. AIME goes the
    same way. Published code computes without a limit; here what is stopped is counted.
    """
    answer = last_box(generation)
    if not answer:
        tag = first_answer_tag(generation)
        answer = answer if tag is None else tag
    if answer is None:
        return whole_answer(None, False)
    truth = str(row.ground_truth)
    if is_same_text(answer, truth):
        return whole_answer(answer, True)
    verdict = checks.is_same_formula("reference", answer, truth)
    return whole_answer(answer, verdict.holds, verdict.timed_out)


def strict(row: Row, generation: str, checks: Checks) -> Score:
    """The last closed box or tag: equal as words, as exact numbers, or as mathematical objects."""
    answer = final_answer(generation)
    if answer is None:
        return whole_answer(None, False)
    truth = str(row.ground_truth)
    if is_same_wording(answer, truth):
        return whole_answer(answer, True)
    is_equal = is_equal_in_base(answer, truth, row.question)
    if is_equal is not None:
        return whole_answer(answer, is_equal)
    given, wanted = read_quantity(answer), read_quantity(truth)
    if given is not None and wanted is not None:
        return whole_answer(answer, is_equal_quantity(given, wanted, row.question))
    verdict = checks.is_same_formula("strict", answer, truth)
    return whole_answer(answer, verdict.holds, verdict.timed_out)


def is_same_wording(answer: str, truth: str) -> bool:
    r"""Whether both are the same word, the same letter of a choice, bracketed or not, or the same LaTeX."""
    answer, truth = (TEXT.sub(r"\1", each).strip(" $.") for each in (answer, truth))
    choices = [CHOICE.fullmatch(each) for each in (answer, truth)]
    if choices[0] and choices[1]:
        return choices[0][1] == choices[1][1]
    if len(truth) > 1 and WORDS.fullmatch(truth):
        return answer.casefold() == truth.casefold()
    return answer.replace(" ", "") == truth.replace(" ", "")


def check_row(row: Row) -> None:
    """The ground truth is LaTeX, or a number.

    Raises:
        ValueError: It is anything else, or empty.
    """
    truth = row.ground_truth
    is_number = isinstance(truth, int | float) and not isinstance(truth, bool) and math.isfinite(truth)
    if not is_number and not (isinstance(truth, str) and truth.strip()):
        raise ValueError(f"ground_truth={truth!r:.80}: a maths answer is needed, as LaTeX text or a number.")
