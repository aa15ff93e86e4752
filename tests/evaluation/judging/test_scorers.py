"""The two scorers of each task: a sample that names each rule, the published counts, and text that breaks things."""

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lift_ds.evaluation.judging import Checks, Problem
from lift_ds.evaluation.judging.extraction import final_answer
from lift_ds.evaluation.judging.numbers import read_quantity
from lift_ds.evaluation.sandbox import Limits
from lift_ds.evaluation.score_file import read_rows, score_rows
from lift_ds.evaluation.tasks import EVAL_TASKS
from lift_ds.evaluation.tasks.countdown import evaluate, is_near
from tests.conftest import VECTORS

SAMPLES = VECTORS / "scoring"
PUBLISHED = {
    # task: parts and whole answers that are right, by the published rules and by the strict ones
    "gsm8k": {"reference": (863, 1130, 863), "strict": (861, 1130, 861)},
    "math500": {"reference": (169, 500, 169), "strict": (176, 500, 176)},
    "countdown": {"reference": (50, 256, 50), "strict": (49, 256, 49)},
    "sudoku": {"reference": (137, 2048, 0), "strict": (27, 2048, 0)},
}
QUICK = Limits(seconds=3.0)


def score_all(path, task, scorer, limits=QUICK, num_workers=1):
    return score_rows(read_rows(path, task), task, scorer, limits, num_workers, lambda: None)


@pytest.mark.parametrize("scorer", ["reference", "strict"])
@pytest.mark.parametrize("task", [path.stem for path in sorted(SAMPLES.glob("*.jsonl"))])
def test_every_rule(task, scorer):
    """Each line of the sample says which rule it shows and how many parts each scorer must count."""
    path = SAMPLES / f"{task}.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    found = score_all(path, task, scorer)
    counts = [sum(score.correct for score in scores) for scores in found]
    wrong = [
        (line["rule"], line[scorer], count) for line, count in zip(lines, counts, strict=True) if line[scorer] != count
    ]
    assert not wrong
    for line, scores in zip(lines, found, strict=True):
        if "strict_solved" in line and scorer == "strict":
            assert scores[0].is_solved is line["strict_solved"], line["rule"]


def test_both_scorers_disagree_somewhere_in_every_sample():
    """Otherwise the sample would not tell them apart; AIME's is about samples of one question."""
    for path in SAMPLES.glob("*.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert path.stem == "aime24" or any(line["reference"] != line["strict"] for line in lines), path.stem


@pytest.mark.parametrize(
    ("task", "scorer"),
    [
        pytest.param(task, scorer, marks=[pytest.mark.slow] if (task, scorer) == ("math500", "strict") else [])
        for task in PUBLISHED
        for scorer in ("reference", "strict")
    ],
)
def test_published_generations(bench, task, scorer):
    """Real generations of LLaDA-8B-Instruct; `reference` gives the published integers."""
    scores = [score for (score,) in score_all(bench / f"{task}_256.jsonl", task, scorer, Limits(), 2)]
    counts = (
        sum(score.correct for score in scores),
        sum(score.total for score in scores),
        sum(score.is_solved for score in scores),
    )
    assert counts == PUBLISHED[task][scorer]
    assert not any(score.timed_out for score in scores)


TRUTHS = {
    "gsm8k": ("How many?", 5.0),
    "math500": ("Find x.", "5"),
    "countdown": ("", [[3, 7, 5], 5]),
    "sudoku": ("0234341221434321", "1234341221434321"),
    "mbpp": ("", "assert f() == 1"),
}
HUGE = {
    # kind: a text of 10 MB, and the tasks whose rules look for such a thing
    "digits": ("\\boxed{" + "9" * 10_000_000 + "}", ("gsm8k", "math500")),
    "tags": ("<answer>" * 1_250_000, ("math500", "sudoku")),
    "boxes": ("\\boxed{" * 1_400_000, ("math500",)),
    "spaces": ("<answer>```" + " " * 10_000_000, ("sudoku",)),
    "equation": ("\\boxed{" + "1+" * 5_000_000 + "}", ("countdown",)),
    "fences": ("```python\n" * 1_000_000, ("mbpp",)),
}


@pytest.mark.parametrize("kind", list(HUGE))
def test_answers_of_10_mb_are_wrong_and_quick(kind):
    text, tasks = HUGE[kind]
    began = time.perf_counter()
    with Checks(QUICK) as checks:
        for task in tasks:
            for scorer in ("reference", "strict"):
                score = EVAL_TASKS[task].scorer(scorer)(Problem(*TRUTHS[task], ""), text, checks)
                assert not score.is_solved, (task, scorer)
    assert time.perf_counter() - began < 60  # minutes, were a rule quadratic


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="<>answer/\\boxed{}()0123456789.,=+-*/^_ \n`\x00", max_size=80))
def test_no_text_breaks_a_scorer(text):
    with Checks(QUICK) as checks:
        for task in ("gsm8k", "countdown", "sudoku"):
            for scorer in ("reference", "strict"):
                score = EVAL_TASKS[task].scorer(scorer)(Problem(*TRUTHS[task], "here"), text, checks)
                assert 0 <= score.correct <= score.total


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("\\boxed{1} \\boxed{2}", "2"),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed{\\boxed{3}}", "3"),
        ("\\boxed{x = \\boxed{3} or 4}", "3"),
        ("\\boxed{1} \\boxed{2", "1"),
        ("\\boxed{1} \\boxed{ }", "1"),
        ("<answer>4</answer> \\boxed{5}", "5"),
        ("\\boxed{5} <answer>4</answer>", "4"),
        ("<answer>so \\boxed{6} holds</answer>", "6"),
        ("\\boxed{7} <answer>\\boxed{8</answer>", "7"),
        ("<answer>\\{1, 2\\}</answer>", "\\{1, 2\\}"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("<answer>9", None),
        ("\\boxed{1}<|endoftext|>\\boxed{2}", "1"),
        ("9", None),
    ],
)
def test_the_last_closed_answer(text, answer):
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1,234,567.50", "1234567.5"),
        ("1,23", None),  # two numbers, or a typing error
        ("-\\frac{3}{4}", "-0.75"),
        ("2\\frac{1}{2}", "2.5"),
        ("2 1/2", "2.5"),
        ("1.5 \\times 10^{3}", "1500"),
        ("10^{101}", None),  # above the largest exponent that is read
        ("1/0", None),
        ("5x", None),
        ("\\pi", None),
        ("€ 3", "3"),
        ("3 miles per hour", "3"),
        ("$\\$5$", "5"),
        ("9" * 201, None),
    ],
)
def test_numbers_are_exact(text, value):
    quantity = read_quantity(text)
    assert (None if quantity is None else float(quantity.value)) == (None if value is None else float(value))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("(1 + 2) * 3 / 4", 2.25),  # 9 / 4
        ("2**10 // 3", 341),  # 1024 = 3 * 341 + 1
        ("-(2 - 5.5)", 3.5),
        ("9**9**9**9", None),
        ("2**10000", None),  # 2 has 2 bits: 20,000
        ("1/0", None),
        ("2.0**9999", None),  # no float is that large
        ("3(4)", None),
        ("[1]", None),
        ("abs(1)", None),
        ("(" * 400 + "1" + ")" * 400, None),
        ("+" * 999 + "1", None),
    ],
)
def test_published_arithmetic_computes_without_eval(text, value):
    began = time.perf_counter()
    assert evaluate(text) == value
    assert time.perf_counter() - began < 1


def test_no_number_is_too_large_to_compare():
    assert not is_near("(-1)**0.5*9.0**320", 5, 1e-5)  # about 1e305 i
    assert not is_near("((-1)**0.5+1)*9.0**323", 5, 1e-5)  # its absolute value is above the largest float
    assert is_near("0.1+0.2-0.3+5", 5, 1e-5)
