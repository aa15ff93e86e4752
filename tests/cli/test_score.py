"""`tools/score.py`: the table, the JSON, pass@k, and every kind of bad input."""

import json
import sys

import pytest

from lift_ds.cli.score import main
from lift_ds.evaluation.score_file import check_task
from tests.conftest import VECTORS, run, run_script

GOOD = {"question": "How many?", "generation": "\\boxed{1,200}", "ground_truth": 1200.0}


def write(path, *rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def score(path, *flags, task="gsm8k", scorer="strict"):
    output = path.parent / "out.json"
    main([str(path), "--task", task, "--scorer", scorer, "--json", str(output), *flags])
    return json.loads(output.read_text())


def test_counts_and_records(tmp_path, capsys):
    rows = [GOOD, GOOD | {"generation": "\\boxed{12}"}, GOOD | {"generation": "1200"}, GOOD | {"ground_truth": None}]
    found = score(write(tmp_path / "rows.jsonl", *rows))
    records = found.pop("items")
    assert found == {
        "task": "gsm8k", "scorer": "strict", "scorer_version": 1, "parts": "answers", "correct": 1, "total": 4,
        "accuracy": 0.25, "rows": 4, "generations": 4, "solved": 1, "solved_share": 0.25,
        "solved_interval": [pytest.approx(0.0456, abs=1e-4), pytest.approx(0.6994, abs=1e-4)],
        "parse_failures": 1, "timeouts": 0, "without_ground_truth": 1, "pass_at_k": {},
    }  # fmt: skip
    assert records[1] == {
        "where": f"{tmp_path / 'rows.jsonl'}:2",
        "scores": [
            {"correct": 0, "total": 1, "is_solved": False, "is_parsed": True, "timed_out": False, "answer": "12"}
        ],
    }
    printed = capsys.readouterr().out
    for part in ("gsm8k, strict scorer, version 1", "25.0%", "4.6% to 69.9%", "parse failures", "without ground truth"):
        assert part in printed


def test_samples_of_one_question(tmp_path, capsys):
    path = write(tmp_path / "rows.jsonl", *(VECTORS / "scoring" / "aime24.jsonl").read_text().splitlines())
    found = score(path, task="aime24")
    # 2 of 4 right and 0 of 4: pass@2 = (1 - 1/6 + 0) / 2, two wrong ones in 1 of 6 pairs
    assert found["pass_at_k"] == {"1": 0.25, "2": pytest.approx(5 / 12), "4": 0.5}
    assert (found["correct"], found["total"], found["rows"], found["generations"]) == (2, 8, 2, 8)
    assert found["solved_interval"] is None
    assert "pass@4" in capsys.readouterr().out


def test_workers_change_nothing(tmp_path):
    path = write(tmp_path / "rows.jsonl", *(VECTORS / "scoring" / "mbpp.jsonl").read_text().splitlines())
    assert score(path, "--workers", "3", task="mbpp") == score(path, task="mbpp")


def test_cells_and_grids(tmp_path, capsys):
    path = write(tmp_path / "rows.jsonl", *(VECTORS / "scoring" / "sudoku.jsonl").read_text().splitlines())
    found = score(path, task="sudoku")
    assert found["parts"] == "cells"
    assert (found["correct"], found["solved"]) == (14, 3)
    printed = capsys.readouterr().out
    assert "correct cells" in printed and "solved" in printed


def test_programs_that_hang_are_counted(tmp_path):
    loop = {"question": "", "generation": "```python\nwhile True: pass\n```", "ground_truth": "assert True"}
    found = score(write(tmp_path / "rows.jsonl", loop), "--time-limit", "0.3", task="mbpp")
    assert (found["correct"], found["timeouts"], found["parse_failures"]) == (0, 1, 0)


@pytest.mark.parametrize(
    ("rows", "flags", "message"),
    [
        ([], (), "rows.jsonl has no rows"),
        (["", "  "], (), "rows.jsonl has no rows"),
        ([GOOD, "{'question': 1}"], (), "rows.jsonl:2: not JSON (Expecting property name"),
        ([GOOD, '{"question": "a\0b"}'], (), "rows.jsonl:2: not JSON (Invalid control character"),
        (["[" * 100_000], (), "rows.jsonl:1: not JSON"),
        (["[1]"], (), "rows.jsonl:1: a JSON list, where an object with question, generation, ground_truth is needed"),
        (
            [{"question": "q", "answer": 1}],
            (),
            "rows.jsonl:1: no column generation, ground_truth; it has question, answer",
        ),
        ([GOOD | {"generation": []}], (), "rows.jsonl:1: generation: a text is needed, or a list"),
        ([GOOD | {"generation": ["a", 3]}], (), "rows.jsonl:1: generation: a text is needed, or a list"),
        ([GOOD | {"question": 3}], (), "rows.jsonl:1: question, and entry_point where it is given, must be text"),
        ([GOOD | {"ground_truth": "12"}], (), "rows.jsonl:1: ground_truth='12': gsm8k needs a number"),
        ([GOOD | {"ground_truth": float("nan")}], (), "gsm8k needs a number"),
        ([GOOD | {"ground_truth": True}], (), "gsm8k needs a number"),
        ([GOOD], ("--task", "gsm8"), "task 'gsm8': allowed are gsm8k, math500, aime24, aime25, countdown, sudoku"),
        ([GOOD], ("--scorer", "lenient"), "scorer 'lenient': allowed are reference, strict"),
        ([GOOD], ("--workers", "0"), "--workers=0: at least 1"),
        ([GOOD], ("--time-limit", "nan"), "--time-limit=nan: a number of seconds above 0"),
        ([GOOD], ("--memory-mib", "10"), "--memory-mib=10: at least 256"),
        ([GOOD], ("--task", "math500"), None),
        (
            [GOOD | {"ground_truth": ""}],
            ("--task", "aime25"),
            "rows.jsonl:1: ground_truth='': a maths answer is needed",
        ),
        ([GOOD], ("--task", "countdown"), "rows.jsonl:1: ground_truth=1200.0: countdown needs [[numbers], target]"),
        ([GOOD], ("--task", "sudoku"), "rows.jsonl:1: question: sudoku needs the puzzle as 16 digits"),
        ([GOOD | {"question": "1" * 16}], ("--task", "sudoku"), "has no blank (0) to fill"),
        ([GOOD | {"question": "0" * 16}], ("--task", "sudoku"), "not a solution of 0000000000000000"),
        ([GOOD], ("--task", "humaneval"), "humaneval needs the tests, with `def check(candidate)`"),
        ([GOOD], ("--task", "mbpp"), "mbpp needs its tests"),
    ],
)
def test_bad_input_is_one_clear_error(rows, flags, message, tmp_path, capsys):
    path = write(tmp_path / "rows.jsonl", *rows)
    if message is None:  # a number is a fine answer of MATH
        assert score(path, *flags)["total"] == 1
        return
    with pytest.raises(SystemExit) as stopped:
        score(path, *flags)
    printed = capsys.readouterr()
    assert stopped.value.code == 2
    assert printed.err.startswith("error: ") and len(printed.err.splitlines()) == 1
    assert message in printed.err
    assert not (tmp_path / "out.json").exists()


def test_files_that_are_none(tmp_path, capsys):
    binary = tmp_path / "rows.jsonl"
    binary.write_bytes(b"\xff\xfe\x00")
    for path, message in (
        (binary, "rows.jsonl:1: the file is text in UTF-16"),
        (tmp_path, "Is a directory"),
        (tmp_path / "x", "No such file"),
    ):
        with pytest.raises(SystemExit):
            main([str(path), "--task", "gsm8k", "--scorer", "strict"])
        assert message in capsys.readouterr().err


def test_formulas_need_the_extra(monkeypatch):
    monkeypatch.setattr("lift_ds.evaluation.score_file.find_spec", lambda name: None)
    check_task("gsm8k", "strict")
    with pytest.raises(
        RuntimeError, match=r"math500 needs sympy, antlr4, math_verify .* pip install 'lift_ds\[eval\]'"
    ):
        check_task("math500", "strict")


def test_it_starts_without_torch():
    heavy = {"torch", "transformers", "deepspeed", "sympy"}
    code = f"import sys, lift_ds.cli.score; print(sorted({heavy} & set(sys.modules)))"
    assert run([sys.executable, "-c", code]).stdout.strip() == "[]"
    assert "--scorer" in run_script("tools/score.py", "--help").stdout


def test_the_api_is_loaded_on_demand():
    import lift_ds

    assert set(lift_ds.__all__) == set(lift_ds.HOMES) <= set(dir(lift_ds))
    assert all(callable(getattr(lift_ds, name)) for name in lift_ds.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = lift_ds.nothing
