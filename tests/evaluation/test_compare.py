"""Comparisons of two evaluations, through the command that makes them."""

import json
from pathlib import Path

import pytest

from lift_ds.cli import evaluate
from lift_ds.evaluation.compare import compare


def write_evaluation(folder, solved, task="gsm8k", texts=("<b>one</b>", "two", "three", "four"), version=1):
    """An evaluation's folder as far as a comparison reads it."""
    folder.mkdir(parents=True)
    lines = [{"question": f"q{i}?", "generation": [text], "ground_truth": i, "where": f"f:{i}"} for i, text in
             enumerate(texts)]  # fmt: skip
    (folder / f"{task}.jsonl").write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    items = [{"where": f"f:{i}", "scores": [{"is_solved": each}]} for i, each in enumerate(solved)]
    results = {"tasks": {task: {"scores": {"strict": {"items": items, "scorer_version": version}}}}}
    (folder / "results.json").write_text(json.dumps(results))
    return str(folder)


def test_comparison(tmp_path, capsys):
    """Three of four flip: two only the second solves, one only the first. McNemar: min(1, 2 (1 + 3) / 8) = 1."""
    first = write_evaluation(tmp_path / "first[/b]", [True, False, False, True])
    second = write_evaluation(tmp_path / "second", [False, True, True, True])
    page, figures = tmp_path / "page.html", tmp_path / "figures.json"
    evaluate.main(["--compare", first, second, "--html", str(page), "--json", str(figures)])
    (found,) = json.loads(figures.read_text())
    assert found["solved"] == [0.5, 0.75]
    assert (found["only_first"], found["only_second"], found["p_value"]) == (1, 2, 1.0)
    assert found["difference"]["mean"] == 0.25
    assert found["difference"]["low"] < 0.25 < found["difference"]["high"]
    assert [flip["where"] for flip in found["flips"]] == ["f:0", "f:1", "f:2"]
    text = page.read_text()
    assert text.count("<details>") == 3
    assert "&lt;b&gt;one&lt;/b&gt;" in text
    assert "<b>one</b>" not in text
    assert "+25.0%" in capsys.readouterr().out


def test_answers_with_other_line_ends_are_compared(tmp_path):
    """Python's text lines end at U+2028, U+2029 and U+0085, too; those of JSON Lines do not."""
    first = write_evaluation(tmp_path / "first", [True], texts=("one\u2028two\u2029three\x85four\x00",))
    assert [found.num_problems for found in compare(Path(first), Path(first), None, 0)] == [1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "math500"}, "second has math500."),
        ({"texts": ("a", "b", "c")}, "answered different problems (4 and 3 of them); evaluate"),
        ({"version": 2}, "scorer strict of versions 1 and 2"),
    ],
)
def test_comparison_of_what_differs(tmp_path, capsys, change, message):
    first = write_evaluation(tmp_path / "first", [True] * 4)
    second = write_evaluation(tmp_path / "second", [True] * 4, **change)
    with pytest.raises(SystemExit) as ended:
        evaluate.main(["--compare", first, second])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
