r"""GSM8K: word problems with a number as the answer.

Of the 1,130 published generations `reference` counts 863 and `strict` 861: it reads 11 answers with thousands
separators or behind an empty box that the published rules miss, and not 13 that are in no closed box (`\boxed{78`
without its brace, `boxed{27}`), are not the last one, or are another number (`\frac{2}{3}` for 2, `2:00 pm` for 2).
"""

from __future__ import annotations

import re
from fractions import Fraction

from lift_ds.evaluation.judging import Checks, Problem, Score, whole_answer
from lift_ds.evaluation.judging.extraction import final_answer
from lift_ds.evaluation.judging.numbers import Quantity, is_equal_quantity, is_number, read_quantity
from lift_ds.evaluation.judging.published import between, first_answer_tag

from .task import EvalTask, Values

NUMBER = re.compile(r"-?\d+\.?\d*")
WORD = re.compile(r"[A-Za-z]{3,}")
NUMBER_IN_WORDS = re.compile(r"(?:(?<=\s)|^)(\\?[$€£]?-?\d[\d,]*(?:\.\d+)?(?:\s?\\?%)?)(?=[\s.,;!?]|$)")


def read_row(values: Values, where: str) -> Problem:
    """`answer` ends in `#### 1,234`."""
    _, mark, number = str(values["answer"]).rpartition("####")
    text = number.strip().replace(",", "")
    if not mark or not re.fullmatch(r"-?\d{1,300}(\.\d{1,300})?", text):
        raise ValueError(f"answer ends in {number.strip()[:40]!r}, not in `####` and a number.")
    return Problem(values["question"], float(text) if "." in text else int(text), where)


def reference(problem: Problem, generation: str, checks: Checks) -> Score:
    r"""As published: the first box with a number, else the first answer tag, in floating point.

    Source: LIFT's `eval/scoring.py`. d1's later versions also read what follows the last `<answer>`, closed or not,
    which makes 880 of these generations.

    Known faults, kept: the first box counts, not the last; its first number counts (`1,234` is 1, `3/4` is 3, `10 to
    20` is 10), but the last one of a tag; units, signs of percent and all other text are passed over.
    """
    answer = first_boxed_number(generation)
    if answer is None:
        tag = first_answer_tag(generation)
        answer = read_float(tag, last=True) if tag else None
    truth = problem.ground_truth
    return whole_answer(None if answer is None else repr(answer), answer is not None and answer == truth)


def first_boxed_number(text: str) -> float | None:
    r"""The first number of the first box that has one; a box ends at the next brace of its line."""
    boxes = (box.strip() for line in text.split("\n") for box in between(line, "\\boxed{", "}"))
    values = (read_float(box, last=False) for box in boxes if box.strip("."))
    return next((value for value in values if value is not None), None)


def read_float(text: str, last: bool) -> float | None:
    """The text as a float, else its first or last number."""
    try:
        return float(text)
    except ValueError:
        numbers = NUMBER.findall(text)
        return float(numbers[-1 if last else 0]) if numbers else None


def strict(problem: Problem, generation: str, checks: Checks) -> Score:
    """The last closed box or tag, read exactly; of a sentence its one number."""
    answer = final_answer(generation)
    quantity = None if answer is None else read_quantity(answer) or only_number(answer)
    if answer is None or quantity is None:
        return whole_answer(None, False)
    if problem.ground_truth is None:
        return whole_answer(answer, False)
    truth = Quantity(Fraction(repr(problem.ground_truth)))  # as exact as it is written
    return whole_answer(answer, is_equal_quantity(quantity, truth, problem.question))


def only_number(text: str) -> Quantity | None:
    """The number of a sentence that has exactly one; `None` for formulas and for several numbers."""
    if len(WORD.findall(text)) < 2 or len(re.findall(r"\d+", text.replace(",", ""))) > 2:
        return None
    quantities = NUMBER_IN_WORDS.findall(text)
    rest = NUMBER_IN_WORDS.sub("", text)
    return read_quantity(quantities[0]) if len(quantities) == 1 and not re.search(r"\d", rest) else None


def _check(problem: Problem) -> None:
    truth = problem.ground_truth
    if truth is not None and not is_number(truth):
        raise ValueError(f"ground_truth={truth!r:.80}: gsm8k needs a number (or null, where the answer is not known).")


TASK = EvalTask(
    name="gsm8k",
    source="hub:openai/gsm8k:main@test",
    read={("question", "answer"): read_row},
    reference=reference,
    strict=strict,
    check=_check,
)
