r"""MATH-500 and AIME: answers in LaTeX.

On the 500 published MATH generations `reference` counts 169 and `strict` 176: the seven more are right answers that the
published rules miss (`36.00` for `\$36`, `15` for `15\mbox{ cm}^2`, `east` for `\text{east}`, `C` for `\text{(C)}`,
`7! \times 2!` for `10,\!080`, a matrix after `=`, `12 cm` for `12`).
"""

from __future__ import annotations

import re
from dataclasses import replace

from lift_ds.evaluation.judging import Checks, Problem, Score, whole_answer
from lift_ds.evaluation.judging.extraction import final_answer
from lift_ds.evaluation.judging.numbers import is_equal_in_base, is_equal_quantity, is_number, read_quantity
from lift_ds.evaluation.judging.published import first_answer_tag, is_same_text, last_box

from .task import EvalTask, Values

TEXT = re.compile(r"\\(?:text|textbf|mathrm|mbox|textrm)\s*\{([^{}]*)\}")
WORDS = re.compile(r"[A-Za-z][A-Za-z '-]*")
CHOICE = re.compile(r"\(?([A-Z])\)?")


def read_row(values: Values, where: str) -> Problem:
    """`problem` and `answer`."""
    return Problem(values["problem"], values["answer"], where)


def read_list(values: Values, where: str) -> Problem:
    """`question` and `sol`, an answer or a list of one: the form of LIFT's own file."""
    answers = values["sol"] if isinstance(values["sol"], list) else [values["sol"]]
    if len(answers) != 1:
        raise ValueError(f"sol has {len(answers)} answers; one is needed.")
    return Problem(values["question"], answers[0], where)


def reference(problem: Problem, generation: str, checks: Checks) -> Score:
    """As published: d1's last box, compared as cleaned text (162 of 500), else by OlympiadBench's judge (169).

    Source: LIFT's `eval/scoring.py`; `published` and `published_judge` name the rules and their faults. AIME goes the
    same way. Published code computes without a limit; here what is stopped is counted.
    """
    answer = last_box(generation)
    tag = first_answer_tag(generation)
    if not answer and tag is not None:
        answer = tag
    if answer is None:
        return whole_answer(None, False)
    truth = str(problem.ground_truth)
    if is_same_text(answer, truth):
        return whole_answer(answer, True)
    return whole_answer(answer, *checks.is_same_formula("reference", answer, truth))


def strict(problem: Problem, generation: str, checks: Checks) -> Score:
    """The last closed box or tag: equal as words, as exact numbers, or as mathematical objects."""
    answer = final_answer(generation)
    if answer is None:
        return whole_answer(None, False)
    truth = str(problem.ground_truth)
    if is_same_wording(answer, truth):
        return whole_answer(answer, True)
    is_equal = is_equal_in_base(answer, truth, problem.question)
    if is_equal is not None:
        return whole_answer(answer, is_equal)
    given, wanted = read_quantity(answer), read_quantity(truth)
    if given is not None and wanted is not None:
        return whole_answer(answer, is_equal_quantity(given, wanted, problem.question))
    return whole_answer(answer, *checks.is_same_formula("strict", answer, truth))


def is_same_wording(answer: str, truth: str) -> bool:
    r"""Whether both are the same word, the same letter of a choice, bracketed or not, or the same LaTeX."""
    answer, truth = (TEXT.sub(r"\1", text).strip(" $.") for text in (answer, truth))
    choices = [CHOICE.fullmatch(text) for text in (answer, truth)]
    if choices[0] and choices[1]:
        return choices[0][1] == choices[1][1]
    if len(truth) > 1 and WORDS.fullmatch(truth):
        return answer.casefold() == truth.casefold()
    return answer.replace(" ", "") == truth.replace(" ", "")


def _check(problem: Problem) -> None:
    truth = problem.ground_truth
    if not is_number(truth) and not (isinstance(truth, str) and truth.strip()):
        raise ValueError(f"ground_truth={truth!r:.80}: a maths answer is needed, as LaTeX text or a number.")


MATH500 = EvalTask(
    name="math500",
    source="hub:HuggingFaceH4/MATH-500@test",
    read={("problem", "answer"): read_row},
    reference=reference,
    strict=strict,
    check=_check,
    needs_maths=True,
)
AIME24 = replace(
    MATH500,
    name="aime24",
    source="hub:HuggingFaceH4/aime_2024@train",
    read={("problem", "answer"): read_row, ("question", "sol"): read_list},
)
AIME25 = replace(AIME24, name="aime25", source="hub:math-ai/aime25@test")
TASKS = (MATH500, AIME24, AIME25)
