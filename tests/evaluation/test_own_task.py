"""A task of somebody else's: a reader, a scorer and one row of the table; scored and evaluated by the commands."""

import json

import pytest

from lift_ds.cli import evaluate, score
from lift_ds.evaluation.judging import Problem, whole_answer
from lift_ds.evaluation.judging.extraction import final_answer
from lift_ds.evaluation.tasks import EVAL_TASKS, EvalTask

ROWS = [{"number": 4, "parity": "even"}, {"number": 7, "parity": "odd"}, {"number": 10, "parity": "even"}]
PROTOCOL = """
stop_early: true
answer_prefix: ""
scorers: [reference, strict]
decoding: {gen_length: 8, block_length: 8, steps: 2}
tasks:
  parity: {prompt: "PROMPT"}
"""


def read_row(values, where):
    return Problem(f"Is {values['number']} even or odd?", values["parity"], where)


def strict(problem, generation, checks):
    answer = final_answer(generation)
    return whole_answer(answer, answer == problem.ground_truth)


def check(problem):
    if problem.ground_truth not in ("even", "odd"):
        raise ValueError(f"ground_truth={problem.ground_truth!r}: parity needs even or odd.")


def write_lines(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def write_protocol(path, prompt):
    path.write_text(PROTOCOL.replace("PROMPT", prompt))
    return ["--model", "builtin:base", "--protocol", str(path), "--tasks", "parity"]


@pytest.fixture
def rows(tmp_path, monkeypatch):
    """The task's file; the table has the task for one test."""
    path = write_lines(tmp_path / "rows.jsonl", ROWS)
    task = EvalTask(name="parity", source=path, read={("number", "parity"): read_row}, strict=strict, check=check)
    monkeypatch.setitem(EVAL_TASKS, task.name, task)  # as `EVAL_TASKS[task.name] = task`
    return path


def test_it_is_scored(rows, tmp_path, capsys):
    """`even` is right for 4 and wrong for 7; without a tag or a box 10 has no answer."""
    texts = ["<answer>even</answer>", "\\boxed{even}", "even"]
    lines = [
        {"question": f"Is {row['number']} even or odd?", "generation": text, "ground_truth": row["parity"]}
        for row, text in zip(ROWS, texts, strict=True)
    ]
    path, output = write_lines(tmp_path / "answers.jsonl", lines), tmp_path / "score.json"
    score.main([path, "--task", "parity", "--scorer", "strict", "--json", str(output)])
    counts = json.loads(output.read_text())
    assert (counts["solved"], counts["total"], counts["parse_failures"]) == (1, 3, 1)
    assert [item["scores"][0]["answer"] for item in counts["items"]] == ["even", "even", None]
    assert "parity, strict scorer, version 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("ground_truth", "scorer", "message"),
    [
        ("both", "strict", "answers.jsonl:1: ground_truth='both': parity needs even or odd"),
        ("even", "reference", "scorer 'reference': nothing is published for parity; use strict"),
    ],
)
def test_its_errors_are_told(rows, tmp_path, ground_truth, scorer, message, capsys):
    line = {"question": "Is 4 even or odd?", "generation": "even", "ground_truth": ground_truth}
    path = write_lines(tmp_path / "answers.jsonl", [line])
    with pytest.raises(SystemExit):
        score.main([path, "--task", "parity", "--scorer", scorer])
    assert message in capsys.readouterr().err


def test_it_is_evaluated(rows, tmp_path):
    """By the built-in base, under a protocol of its own; `tools/score.py` counts its answers the same."""
    output, again = tmp_path / "evaluation", tmp_path / "again.json"
    flags = write_protocol(tmp_path / "mine.yaml", "{question}")
    evaluate.main([*flags, "--limit", "2", "--output", str(output)])
    lines = [json.loads(line) for line in (output / "parity.jsonl").read_text().splitlines()]
    assert [line["question"] for line in lines] == ["Is 4 even or odd?", "Is 7 even or odd?"]
    assert [line["where"] for line in lines] == [f"{rows}:1", f"{rows}:2"]
    results = json.loads((output / "results.json").read_text())["tasks"]["parity"]
    assert list(results["scores"]) == ["strict"]  # it has no other
    assert results["generation"]["forwards_per_sample"] == 2
    score.main([str(output / "parity.jsonl"), "--task", "parity", "--scorer", "strict", "--json", str(again)])
    scores = [item["scores"] for item in json.loads(again.read_text())["items"]]
    assert scores == [item["scores"] for item in results["scores"]["strict"]["items"]]


def test_its_truth_is_not_shown(rows, tmp_path, capsys):
    """Only a row with `shows_tests` lets a prompt have {tests}."""
    with pytest.raises(SystemExit):
        evaluate.main(write_protocol(tmp_path / "mine.yaml", "{question} {tests}"))
    assert "tasks.parity.prompt: {tests} would show the right answer" in capsys.readouterr().err


def test_it_may_make_its_problems(monkeypatch, tmp_path, capsys):
    """A row with `make` instead of a source: as many as are asked for, and no file."""

    def make(num_items):
        return [read_row(row, f"row {number}") for number, row in enumerate(ROWS[:num_items])]

    monkeypatch.setitem(EVAL_TASKS, "parity", EvalTask(name="parity", make=make, strict=strict, check=check))
    flags = write_protocol(tmp_path / "mine.yaml", "{question}")
    with pytest.raises(SystemExit):
        evaluate.main(flags)
    assert "parity: the protocol names no number of items; say how many with --limit" in capsys.readouterr().err
    evaluate.main([*flags, "--limit", "1", "--output", str(tmp_path / "evaluation")])
    (line,) = (tmp_path / "evaluation" / "parity.jsonl").read_text().splitlines()
    assert json.loads(line)["where"] == "row 0"
