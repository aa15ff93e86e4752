"""The problems of a task, read from files and data sets or made.

Files are read here and not in `tasks`, so that scoring starts without the libraries for parquet, the hub and URLs.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from glob import glob
from itertools import islice
from pathlib import Path

import numpy as np

from lift_ds.data.sources import open_sources
from lift_ds.data.sources.filesystem import is_remote
from lift_ds.data.sources.hub import HUB_PREFIX

from .judging import Problem
from .tasks import EVAL_TASKS, EvalTask, Values

OWN_COLUMNS = ("question", "ground_truth")
"""What a row of any task may have instead of the task's columns; `entry_point`, too."""


def read_problems(name: str, path: str | None, num_items: int | None) -> list[Problem]:
    """The first problems of a task, or all, in the order of its data: a file or a hub name, else the task's source.

    Raises:
        ValueError: There is no data, or a row is not one of the task's; the message names it.
        ConnectionError: The hub does not answer.
    """
    task = EVAL_TASKS[name]
    if task.make is not None:
        if path is not None:
            raise ValueError(f"{name}: its items are made, as many as are asked for; name no file for it.")
        if num_items is None:
            raise ValueError(f"{name}: the protocol names no number of items; say how many with --limit.")
        return task.make(num_items)
    chosen = path or task.source
    if chosen is None:
        files = [*filter(None, [task.known_file]), "JSON Lines with question and ground_truth"]
        raise ValueError(f"{name}: not on the hub; name a file with --data {name}=FILE: {', or '.join(files)}.")
    problems = [read_problem(task, values, where) for where, values in islice(rows_of(chosen), num_items)]
    if not problems:
        raise ValueError(f"{chosen}: no rows.")
    return problems


def read_problem(task: EvalTask, values: Values, where: str) -> Problem:
    """The problem of one row, checked, by the columns that it has.

    Raises:
        ValueError: Columns are missing, or a value is not the task's.
    """
    try:
        if set(OWN_COLUMNS) <= set(values):
            problem = Problem(values["question"], values["ground_truth"], where, values.get("entry_point"))
        else:
            fitting = [read for columns, read in task.read.items() if set(columns) <= set(values)]
            if not fitting:
                needed = " or ".join(f"({', '.join(columns)})" for columns in (*task.read, OWN_COLUMNS))
                raise ValueError(f"columns {', '.join(values) or 'none'}; needed are {needed}.")
            problem = fitting[0](values, where)
        if not isinstance(problem.question, str):
            raise ValueError(f"the question is {problem.question!r:.60}; text is needed.")
        if not isinstance(problem.entry_point, str | None):
            raise ValueError(f"entry_point is {problem.entry_point!r:.60}; the name of a function is needed.")
        json.dumps([problem.question, problem.ground_truth], ensure_ascii=False).encode()  # as results keep it
        task.check(problem)
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{where}: no row of {task.name}: a text has a lone surrogate, which is no text; repair it."
        ) from error
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{where}: no row of {task.name}: {error}") from error
    return problem


def rows_of(path: str) -> Iterator[tuple[str, Values]]:
    """Place and values of each row of a file or data set; lists are Python's, whatever the file's kind.

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
                arrays = {name: value for name, value in row.values.items() if isinstance(value, np.ndarray)}
                yield row.where, {**row.values, **{name: value.tolist() for name, value in arrays.items()}}


def csv_rows(path: Path) -> Iterator[tuple[str, Values]]:
    """Rows of a CSV file, all values as text: puzzles begin with zeros; see `rows_of` for errors."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        try:
            for values in rows:
                if None in values or None in values.values():
                    raise ValueError(f"{path}:{rows.line_num}: more or fewer values than columns.")
                yield f"{path}:{rows.line_num}", values
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: cannot be read after line {rows.line_num}: {error}") from error
