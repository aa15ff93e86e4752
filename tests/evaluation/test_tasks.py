import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lift_ds.evaluation.problems import read_problems


def write_rows(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize(
    ("task", "row", "question", "ground_truth"),
    [
        ("gsm8k", {"question": "How many?", "answer": "3 * 600\n#### 1,800"}, "How many?", 1800),
        ("gsm8k", {"question": "How many?", "answer": "#### -2.5"}, "How many?", -2.5),
        ("math500", {"problem": "x?", "answer": "\\frac12", "level": 3}, "x?", "\\frac12"),
        ("aime24", {"problem": "n?", "answer": "073"}, "n?", "073"),
        ("aime24", {"question": "n?", "sol": ["204"], "cot_type": ["math"]}, "n?", "204"),
        ("aime24", {"question": "n?", "sol": "204"}, "n?", "204"),
        ("aime25", {"problem": "n?", "answer": 70}, "n?", 70),
        ("aime25", {"question": "n?", "sol": ["70"]}, "n?", "70"),
        ("countdown", {"input": "49,55,53", "output": "51"}, "Numbers: [49, 55, 53]\nTarget: 51", [[49, 55, 53], 51]),
        ("countdown", {"nums": [4, 2], "target": 6}, "Numbers: [4, 2]\nTarget: 6", [[4, 2], 6]),
        (
            "sudoku",
            {"Puzzle": "0234341221434320", "Solution": "1234341221434321"},
            "Solve the following Sudoku puzzle: 0234341221434320\n",
            "1234341221434321",
        ),
        (
            "humaneval",
            {"prompt": "def f(x):\n", "test": "def check(candidate):\n    pass\n", "entry_point": "f", "task_id": "1"},
            "def f(x):\n",
            "def check(candidate):\n    pass\n",
        ),
        (
            "mbpp",
            {"prompt": "Add.", "test_list": ["assert add(1, 2) == 3"], "test_imports": ["import math"]},
            "Add.",
            ["import math", "assert add(1, 2) == 3"],
        ),
        ("mbpp", {"text": "Add.", "test_list": ["assert add(1, 2) == 3"]}, "Add.", ["assert add(1, 2) == 3"]),
        ("gsm8k", {"question": "How many?", "generation": "7", "ground_truth": 7.0}, "How many?", 7.0),
    ],
)
def test_known_columns(tmp_path, task, row, question, ground_truth):
    (problem,) = read_problems(task, write_rows(tmp_path / "rows.jsonl", row), None)
    assert (problem.question, problem.ground_truth) == (question, ground_truth)
    assert problem.where.endswith("rows.jsonl:1")
    assert problem.entry_point == row.get("entry_point")


def test_lists_of_numbers_in_parquet(tmp_path):
    """As data sets of Countdown on the hub have them; arrays are no JSON, and were refused as no list."""
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"nums": [[4, 2], [1, 3, 5]], "target": [6, 9]}), path)
    problems = read_problems("countdown", str(path), None)
    assert [problem.ground_truth for problem in problems] == [[[4, 2], 6], [[1, 3, 5], 9]]
    assert problems[0].question == "Numbers: [4, 2]\nTarget: 6"


def test_csv_keeps_zeros(tmp_path):
    path = tmp_path / "sudoku.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["Puzzle", "Solution"], ["0234341221434320", "1234341221434321"]])
    (problem,) = read_problems("sudoku", str(path), None)
    assert "0234341221434320" in problem.question
    assert problem.where == f"{path}:2"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"Puzzle,Solution\n0234341221434320\n", "sudoku.csv:2: more or fewer values"),
        (b"Puzzle,Solution\n0234341221434320,1,2\n", "sudoku.csv:2: more or fewer values"),
        (b"Puzzle,Solution\n" + b"0" * 200_000 + b",1\n", "cannot be read after line 1: field larger"),
        (b"Puzzle,Solution\n\xff,1\n", "cannot be read after line 0: .*utf-8"),
    ],
)
def test_broken_csv(tmp_path, content, message):
    (tmp_path / "sudoku.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_problems("sudoku", str(tmp_path / "sudoku.csv"), None)


def test_limit_takes_the_first(tmp_path):
    rows = [{"question": str(number), "ground_truth": number} for number in range(5)]
    path = write_rows(tmp_path / "rows.jsonl", *rows)
    assert [problem.ground_truth for problem in read_problems("gsm8k", path, 2)] == [0, 1]
    assert len(read_problems("gsm8k", path, None)) == 5


def test_published_files(bench):
    """The rows that the published generations answer are task files, too."""
    counts = {"gsm8k": 1130, "math500": 500, "countdown": 256, "sudoku": 256}
    for task, count in counts.items():
        assert len(read_problems(task, str(bench / f"{task}_256.jsonl"), None)) == count
    assert len(read_problems("aime24", str(bench / "aime24.json"), None)) == 30


def test_builtin_items_differ():
    problems = read_problems("builtin:sudoku", None, 200)
    assert len({problem.question for problem in problems}) == 200
    assert problems[:10] == read_problems("builtin:sudoku", None, 10)
    assert {problem.where.split(":")[1] for problem in problems} == {f"sudoku/{level}" for level in (1, 2, 3, 4)}
    (one,) = read_problems("builtin:listops/2", None, 1)
    assert one.where == "builtin:listops/2: test item 0"
    with pytest.raises(ValueError, match="name no file for it"):
        read_problems("builtin:sudoku", "x.jsonl", 3)
    with pytest.raises(ValueError, match="say how many with --limit"):
        read_problems("builtin:sudoku", None, None)


@pytest.mark.parametrize(
    ("task", "row", "message"),
    [
        ("gsm8k", {"question": "x", "solution": 3}, r"rows.jsonl:1: no row of gsm8k: columns question, solution; "
         r"needed are \(question, answer\) or \(question, ground_truth\)"),
        ("gsm8k", {"question": "x", "answer": "about 3"}, "not in `####` and a number"),
        ("gsm8k", {"question": 3, "ground_truth": 3}, "the question is 3; text is needed"),
        ("gsm8k", {"question": "Tom \ud800", "ground_truth": 3}, "rows.jsonl:1: .*lone surrogate"),
        ("gsm8k", {"question": "x", "answer": "#### " + "9" * 5000}, "not in `####` and a number"),
        ("aime24", {"question": "x", "sol": []}, "no row of aime24: sol has 0 answers; one is needed"),
        ("aime25", {"question": "x", "sol": ["1", "2"]}, "no row of aime25: sol has 2 answers"),
        ("countdown", {"input": "4,x", "output": "3"}, "no row of countdown: input has 'x'; a whole number is needed"),
        ("countdown", {"nums": [1.9, 2], "target": 3}, "nums has '1.9'; a whole number is needed"),
        ("countdown", {"nums": [1, 2], "target": 3.7}, "target has '3.7'; a whole number is needed"),
        ("countdown", {"nums": 5, "target": 3}, "nums is 5; a list of whole numbers is needed"),
        ("mbpp", {"prompt": "x", "test_list": "assert f()"}, "test_list is 'assert f.*; a list of texts is needed"),
        ("humaneval", {"prompt": "x", "test": "def check(f):\n    pass\n", "entry_point": 7}, "entry_point is 7"),
        ("sudoku", {"Puzzle": "0234341221434320", "Solution": "1111111111111111"}, "not a solution of"),
        ("humaneval", {"prompt": "x", "test": "assert f()", "entry_point": "f"}, "def check"),
    ],
)  # fmt: skip
def test_bad_rows(tmp_path, task, row, message):
    with pytest.raises(ValueError, match=message):
        read_problems(task, write_rows(tmp_path / "rows.jsonl", row), None)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (None, r"countdown: not on the hub; name a file with --data countdown=FILE: d1's countdown_cd3_test.jsonl"),
        ("none.jsonl", "^none.jsonl: no such file"),
        ("none.csv", "none.csv: no such file"),
    ],
)
def test_no_data(path, message):
    with pytest.raises(ValueError, match=message):
        read_problems("countdown", path, None)
