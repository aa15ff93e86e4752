"""The problems of each task: where its data set is, and what its columns mean.

Any task also reads rows with `question` and `ground_truth` (and `entry_point`), the columns of `score_file`: files of
generations are task files, too.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any

from lift_ds.data.sources import BUILTIN_PREFIX, open_sources
from lift_ds.data.sources.hub import HUB_PREFIX
from lift_ds.data.sources.storage import is_remote
from lift_ds.data.tasks import TASKS, draw_item

from .judging import TASK_SCORERS, Row

BUILTIN_SEED = 0
PROBLEM_COLUMNS = ("question", "ground_truth", "entry_point")
DRAWS_PER_ITEM = 100  # that a built-in task may need to find one it has not given yet
Values = dict[str, Any]


@dataclass(frozen=True)
class Problem:
    """One problem of a task.

    Args:
        question: What the scorers call the question.
        ground_truth: The task's own form of the right answer.
        where: File and row.
        entry_point: Name of the function that tests call, where there is one.
    """

    question: str
    ground_truth: Any
    where: str
    entry_point: str | None = None


@dataclass(frozen=True)
class TaskData:
    """One row of the table of data sets.

    Args:
        hub: Where the rows are, as `hub:owner/name[:config][@split]`; `None` where a file has to be named.
        columns: The data set's columns that are needed.
        read: From these columns to the arguments of `Problem`, without `where`.
        about: What a file holds, for messages.
    """

    hub: str | None
    columns: tuple[str, ...]
    read: Callable[[Values], dict[str, Any]]
    about: str = ""


def read_gsm8k(values: Values) -> dict[str, Any]:
    """`answer` ends in `#### 1,234`."""
    _, found, number = str(values["answer"]).rpartition("####")
    text = number.strip().replace(",", "")
    if not found or not re.fullmatch(r"-?\d{1,300}(\.\d{1,300})?", text):
        raise ValueError(f"answer ends in {number.strip()[:40]!r}, not in `####` and a number.")
    return {"question": values["question"], "ground_truth": float(text) if "." in text else int(text)}


def read_maths(values: Values) -> dict[str, Any]:
    """`problem` and `answer`."""
    return {"question": values["problem"], "ground_truth": values["answer"]}


def read_aime_list(values: Values) -> dict[str, Any]:
    """`question` and `sol`, an answer or a list of one: the form of LIFT's own file."""
    answers = values["sol"] if isinstance(values["sol"], list) else [values["sol"]]
    if len(answers) != 1:
        raise ValueError(f"sol has {len(answers)} answers; one is needed.")
    return {"question": values["question"], "ground_truth": answers[0]}


def read_countdown(values: Values) -> dict[str, Any]:
    """`input` is `49,55,53`, `output` the target: the form of d1's file; `nums` and `target` on the hub."""
    names = ("nums", "target") if "nums" in values else ("input", "output")
    given, target = values[names[0]], whole_number(values[names[1]], names[1])
    if isinstance(given, str):
        given = given.split(",")
    if not isinstance(given, list):
        raise ValueError(f"{names[0]} is {given!r:.60}; a list of whole numbers is needed.")
    numbers = [whole_number(each, names[0]) for each in given]
    return {"question": f"Numbers: {numbers}\nTarget: {target}", "ground_truth": [numbers, target]}


def whole_number(value: Any, column: str) -> int:
    """A number of a column, perhaps as text.

    Raises:
        ValueError: It is no whole number.
    """
    text = str(value).strip()
    if isinstance(value, bool) or not re.fullmatch(r"[+-]?\d{1,300}", text):
        raise ValueError(f"{column} has {text[:60]!r}; a whole number is needed.")
    return int(text)


def read_sudoku(values: Values) -> dict[str, Any]:
    """`Puzzle` and `Solution`, 16 digits each: the form of d1's file."""
    puzzle, solution = (str(values[name]) for name in ("Puzzle", "Solution"))
    return {"question": f"Solve the following Sudoku puzzle: {puzzle}\n", "ground_truth": solution}


def read_humaneval(values: Values) -> dict[str, Any]:
    """`prompt` is code."""
    return {"question": values["prompt"], "ground_truth": values["test"], "entry_point": values["entry_point"]}


def read_mbpp(values: Values) -> dict[str, Any]:
    """`prompt` (`text` in the full set) with `test_list`, and imports that the tests need."""
    question = values["prompt"] if "prompt" in values else values["text"]
    lines: list[str] = []
    for name in ("test_imports", "test_list"):
        found = values.get(name) or []
        if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
            raise ValueError(f"{name} is {found!r:.60}; a list of texts is needed.")
        lines += found
    return {"question": question, "ground_truth": lines}


TASK_DATA: dict[str, tuple[TaskData, ...]] = {
    "gsm8k": (TaskData("hub:openai/gsm8k:main@test", ("question", "answer"), read_gsm8k),),
    "math500": (TaskData("hub:HuggingFaceH4/MATH-500@test", ("problem", "answer"), read_maths),),
    "aime24": (
        TaskData("hub:HuggingFaceH4/aime_2024@train", ("problem", "answer"), read_maths),
        TaskData(None, ("question", "sol"), read_aime_list),
    ),
    "aime25": (
        TaskData("hub:math-ai/aime25@test", ("problem", "answer"), read_maths),
        TaskData(None, ("question", "sol"), read_aime_list),
    ),
    "countdown": (
        TaskData(None, ("input", "output"), read_countdown, "d1's countdown_cd3_test.jsonl"),
        TaskData(None, ("nums", "target"), read_countdown),
    ),
    "sudoku": (TaskData(None, ("Puzzle", "Solution"), read_sudoku, "d1's 4x4_test_sudoku.csv"),),
    "humaneval": (TaskData("hub:openai/openai_humaneval@test", ("prompt", "test", "entry_point"), read_humaneval),),
    "mbpp": (
        TaskData("hub:google-research-datasets/mbpp:sanitized@test", ("prompt", "test_list"), read_mbpp),
        TaskData(None, ("text", "test_list"), read_mbpp),
    ),
}
"""Several forms of a task's rows; the first that fits is read."""


def read_problems(task: str, path: str | None, num_items: int | None) -> list[Problem]:
    """The problems of a task, in the order of its data.

    Args:
        task: A name of `TASK_SCORERS`.
        path: A file (.jsonl, .json, .csv, .parquet, ...) or a hub name; default: the task's data set on the hub.
        num_items: The first so many; `None` takes all.

    Raises:
        ValueError: There is no data, or a row is not one of the task's; the message names it.
        ConnectionError: The hub does not answer.
    """
    if task.startswith(BUILTIN_PREFIX):
        if path is not None:
            raise ValueError(f"{task}: its items are made, as many as are asked for; name no file for it.")
        if num_items is None:
            raise ValueError(f"{task}: the protocol names no number of items; say how many with --limit.")
        return builtin_problems(task, num_items)
    default = next((data.hub for data in TASK_DATA[task] if data.hub), None)
    if path is None and default is None:
        raise ValueError(
            f"{task}: not on the hub; name a file with --data {task}=FILE: {TASK_DATA[task][0].about}, or JSON Lines "
            f"with question and ground_truth."
        )
    problems: list[Problem] = []
    for where, values in rows_of(str(path or default)):
        if num_items is not None and len(problems) == num_items:
            break
        problems.append(read_problem(task, values, where))
    if not problems:
        raise ValueError(f"{path or default}: no rows.")
    return problems


def read_problem(task: str, values: Values, where: str) -> Problem:
    """The problem of one row, checked.

    Raises:
        ValueError: Columns are missing, or a value is not the task's.
    """
    forms = [data for data in TASK_DATA[task] if set(data.columns) <= set(values)]
    try:
        if {"question", "ground_truth"} <= set(values):
            found = {name: value for name, value in values.items() if name in PROBLEM_COLUMNS}
        elif forms:
            found = forms[0].read(values)
        else:
            needed = " or ".join(f"({', '.join(data.columns)})" for data in TASK_DATA[task])
            raise ValueError(f"columns {', '.join(values) or 'none'}; needed are {needed} or (question, ground_truth).")
        problem = Problem(where=where, **found)
        if not isinstance(problem.question, str):
            raise ValueError(f"the question is {problem.question!r:.60}; text is needed.")
        if not isinstance(problem.entry_point, str | None):
            raise ValueError(f"entry_point is {problem.entry_point!r:.60}; the name of a function is needed.")
        json.dumps([problem.question, problem.ground_truth], ensure_ascii=False).encode()  # as results keep it
        TASK_SCORERS[task].check_row(Row(problem.question, ("",), problem.ground_truth, where, problem.entry_point))
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{where}: no row of {task}: a text has a lone surrogate, which is no text; repair it."
        ) from error
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{where}: no row of {task}: {error}") from error
    return problem


def rows_of(path: str) -> Iterator[tuple[str, Values]]:
    """Place and values of each row of a file or data set.

    Raises:
        ValueError: It cannot be read, or a row cannot.
    """
    is_elsewhere = path.startswith(HUB_PREFIX) or is_remote(path)
    if not (is_elsewhere or Path(path).exists() or glob(path, recursive=True)):
        raise ValueError(f"{path}: no such file.")
    if path.lower().endswith(".csv"):
        yield from csv_rows(Path(path))
        return
    for source in open_sources([path], 0, "test", 1):
        for chunk in source.scan().chunks:
            for row in source.read(chunk):
                if row.problem is not None:
                    raise ValueError(f"{row.where}: {row.problem}")
                yield row.where, row.values


def csv_rows(path: Path) -> Iterator[tuple[str, Values]]:
    """Rows of a CSV file, all values as text: puzzles begin with zeros.

    Raises:
        ValueError: It cannot be read, or a row has more or fewer values than there are columns.
    """
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        try:
            for values in rows:
                if None in values or None in values.values():
                    raise ValueError(f"{path}:{rows.line_num}: more or fewer values than columns.")
                yield f"{path}:{rows.line_num}", values
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: cannot be read after line {rows.line_num}: {error}") from error


def builtin_problems(task: str, num_items: int) -> list[Problem]:
    """Test items of a built-in task, no question twice.

    Raises:
        ValueError: The task has not so many different ones.
    """
    name = task.removeprefix(BUILTIN_PREFIX)
    found: dict[str, Problem] = {}
    for index in range(DRAWS_PER_ITEM * num_items):
        item = draw_item(TASKS[name], BUILTIN_SEED, "test", index)
        found.setdefault(item.question, Problem(item.question, item.key, f"{task}: test item {index}"))
        if len(found) == num_items:
            return list(found.values())
    raise ValueError(f"{task}: {num_items} items are asked for; it has about {len(found)} different ones.")
