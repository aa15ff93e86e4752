"""Scores a file of generations: reads its rows, asks a scorer about each, counts."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lift_ds.evaluation.sandbox import Limits
from lift_ds.storage.file_diagnosis import HEAD_BYTES, diagnose
from lift_ds.text_files import BadKeyError, parse_line

from .judging import SCORER_VERSIONS, AnsweredProblem, Checks, Problem, Score, Scorer
from .judging.statistics import pass_at_k, wilson_interval
from .tasks import EVAL_TASKS

COLUMNS = ("question", "generation", "ground_truth")
LONGEST_ANSWER = 500  # characters of an answer that a record keeps


def check_task(task: str, scorer: str) -> None:
    """Refuses what does not exist.

    Raises:
        ValueError: The task or the scorer is unknown.
        RuntimeError: The task's scorers need packages that are not installed.
    """
    for name, value, allowed in (("task", task, EVAL_TASKS), ("scorer", scorer, SCORER_VERSIONS)):
        if value not in allowed:
            raise ValueError(f"{name} {value!r}: allowed are {', '.join(allowed)}.")
    if EVAL_TASKS[task].scorer(scorer) is None:
        raise ValueError(f"scorer {scorer!r}: nothing is published for {task}; use strict.")
    missing = [name for name in ("sympy", "antlr4", "math_verify") if find_spec(name) is None]
    if EVAL_TASKS[task].needs_maths and missing:
        raise RuntimeError(f"{task} needs {', '.join(missing)} to read formulas: pip install 'lift_ds[eval]'")


def read_rows(path: Path, task: str) -> list[AnsweredProblem]:
    """All rows of a JSON Lines file, checked for a task.

    Raises:
        ValueError: The file has no rows, or a line that is not one: said with file and line.
        OSError: It cannot be read.
    """
    rows = []
    for where, values in json_objects(path, COLUMNS):
        try:
            row = make_row(values, where)
            EVAL_TASKS[task].check(row.problem)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        rows.append(row)
    return rows


def json_objects(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Place and object of each line of a JSON Lines file; empty lines are none. `columns` are for messages.

    Raises:
        ValueError: A line is no object, or there are none.
        OSError: It cannot be read.
    """
    lines = enumerate(path.read_bytes().split(b"\n"), start=1)
    filled = [(f"{path}:{number}", line) for number, line in lines if line.strip()]
    if not filled:
        raise ValueError(f"{path} has no rows; needed is one JSON object a line, with {', '.join(columns)}.")
    for where, line in filled:
        yield where, _object_of(line, columns, where)


def _object_of(line: bytes, columns: Sequence[str], where: str) -> dict[str, Any]:
    try:
        values = parse_line(line)
    except BadKeyError as error:
        raise ValueError(f"{where}: {error}.") from error
    except (ValueError, RecursionError) as error:
        found = diagnose(line[:HEAD_BYTES])
        problem = f"the file {found}." if found else f"not JSON ({error}); one object a line is needed."
        raise ValueError(f"{where}: {problem}") from error
    if not isinstance(values, dict):
        kind = type(values).__name__
        raise ValueError(f"{where}: a JSON {kind}, where an object with {', '.join(columns)} is needed.")
    return values


def make_row(values: dict[str, Any], where: str) -> AnsweredProblem:
    """The row that an object describes; a ValueError where a column is missing, or not of its type."""
    missing = [name for name in COLUMNS if name not in values]
    if missing:
        has = ", ".join(map(str, values)) or "none"
        raise ValueError(f"no column {', '.join(missing)}; it has {has}. Needed are {', '.join(COLUMNS)}.")
    generations = values["generation"] if isinstance(values["generation"], list) else [values["generation"]]
    if not generations or not all(isinstance(generation, str) for generation in generations):
        raise ValueError("generation: a text is needed, or a list of one text or more.")
    question, entry_point = values["question"], values.get("entry_point")
    if not isinstance(question, str) or not isinstance(entry_point, str | None):
        raise ValueError("question, and entry_point where it is given, must be text.")
    return AnsweredProblem(Problem(question, values["ground_truth"], where, entry_point), tuple(generations))


def score_rows(
    rows: Sequence[AnsweredProblem],
    task: str,
    scorer: str,
    limits: Limits,
    num_workers: int,
    on_row: Callable[[], object],
) -> list[list[Score]]:
    """The scores of the generations of each row, after which `on_row` is called; see `ScoringPool`.

    Raises:
        RuntimeError: The child processes cannot be started.
    """
    with ScoringPool(limits, num_workers) as pool:
        futures = [pool.submit(row, task, scorer) for row in rows]
        for future in futures:
            future.add_done_callback(lambda _: on_row())
        return [future.result() for future in futures]


class ScoringPool(ExitStack):
    """Scores rows in threads, each of which has child processes of its own, within limits, for what is not trusted."""

    def __init__(self, limits: Limits, num_workers: int) -> None:
        super().__init__()
        self.idle: queue.SimpleQueue[Checks] = queue.SimpleQueue()
        for _ in range(num_workers):
            self.idle.put(self.enter_context(Checks(limits)))
        self.threads = ThreadPoolExecutor(num_workers)
        self.callback(self.threads.shutdown, cancel_futures=True)  # before the children are closed

    def submit(self, row: AnsweredProblem, task: str, scorer: str) -> Future[list[Score]]:
        """The scores that the row's generations will have; an error where child processes cannot be started."""
        judge = EVAL_TASKS[task].scorer(scorer)
        assert judge is not None  # see `check_task`
        return self.threads.submit(self._score, row, judge)

    def _score(self, row: AnsweredProblem, scorer: Scorer) -> list[Score]:
        checks = self.idle.get()
        try:
            return [scorer(row.problem, generation, checks) for generation in row.generations]
        finally:
            self.idle.put(checks)


def summarize(
    rows: Sequence[AnsweredProblem], scores: Sequence[Sequence[Score]], task: str, scorer: str
) -> dict[str, Any]:
    """Counts and shares, and a record of each generation.

    `correct` and `total` count the task's parts over all generations. `solved` counts generations that are right as a
    whole; its interval is Wilson's, over rows with one generation each: several of one question are not independent.
    """
    flat = [score for row_scores in scores for score in row_scores]
    num_solved = sum(score.is_solved for score in flat)
    correct, total = sum(score.correct for score in flat), sum(score.total for score in flat)
    samples = min(len(row_scores) for row_scores in scores)
    is_single = len(flat) == len(rows)
    return {
        "task": task,
        "scorer": scorer,
        "scorer_version": SCORER_VERSIONS[scorer],
        "parts": EVAL_TASKS[task].parts,
        "correct": correct,
        "total": total,
        "accuracy": correct / total,
        "rows": len(rows),
        "generations": len(flat),
        "solved": num_solved,
        "solved_share": num_solved / len(flat),
        "solved_interval": list(wilson_interval(num_solved, len(flat))) if is_single else None,
        "parse_failures": sum(not score.is_parsed for score in flat),
        "timeouts": sum(score.timed_out for score in flat),
        "without_ground_truth": sum(row.problem.ground_truth is None for row in rows),
        "pass_at_k": {} if samples == 1 else pass_rates(scores, samples),
        "items": [_record(row, row_scores) for row, row_scores in zip(rows, scores, strict=True)],
    }


def pass_rates(scores: Sequence[Sequence[Score]], samples: int) -> dict[str, float]:
    """Mean pass@k over rows, for k = 1, 2, 4, ... and the number of samples that every row has."""
    sizes = sorted({samples, *(1 << power for power in range(samples.bit_length()))})
    return {
        str(k): sum(pass_at_k(len(row), sum(score.is_solved for score in row), k) for row in scores) / len(scores)
        for k in sizes
    }


def _record(row: AnsweredProblem, scores: Sequence[Score]) -> dict[str, Any]:
    names = ("correct", "total", "is_solved", "is_parsed", "timed_out")
    of_scores = [
        {name: getattr(score, name) for name in names} | {"answer": score.answer and score.answer[:LONGEST_ANSWER]}
        for score in scores
    ]
    return {"where": row.problem.where, "scores": of_scores}
