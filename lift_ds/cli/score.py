"""Scores generations that exist already.

The file has one JSON object a line with `question`, `generation` (a text, or a list of them for pass@k) and
`ground_truth`; for humaneval `entry_point`, too, where the question has no code. Formulas and programs are checked in
child processes with limits. Exits with 2 where something is wrong.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import MofNCompleteColumn
from rich.table import Table

from lift_ds.evaluation.judging import SCORER_VERSIONS
from lift_ds.evaluation.sandbox import Limits
from lift_ds.evaluation.score_file import check_task, read_rows, score_rows, summarize
from lift_ds.evaluation.tasks import EVAL_TASKS

from .tool import check_counts, check_writable, progress, run_tool, tool_parser, write_json


def make_parser() -> argparse.ArgumentParser:
    """The flags."""
    parser = tool_parser(__doc__)
    parser.add_argument("file", type=Path, help="JSON Lines")
    parser.add_argument("--task", required=True, help=", ".join(EVAL_TASKS))
    parser.add_argument(
        "--scorer",
        required=True,
        help=f"{' or '.join(SCORER_VERSIONS)}: count as the published evaluation does, or count what is right",
    )
    parser.add_argument("--json", type=Path, metavar="OUT", help="write counts and a record of each generation there")
    parser.add_argument("--workers", type=int, default=1, help="rows that are scored at a time (default 1)")
    parser.add_argument(
        "--time-limit", type=float, default=Limits.seconds, metavar="SECONDS", help="of one check (default %(default)s)"
    )
    parser.add_argument(
        "--memory-mib", type=int, default=Limits.memory_mib, help="address space of one check (default %(default)s)"
    )
    return parser


def check_arguments(arguments: argparse.Namespace) -> None:
    """Refuses names and numbers that make no sense.

    Raises:
        ValueError: One does.
        RuntimeError: The task's scorers need packages that are not installed.
    """
    check_task(arguments.task, arguments.scorer)
    if arguments.json is not None:
        check_writable(arguments.json, "--json")
    check_counts(arguments, "workers")
    if not (math.isfinite(arguments.time_limit) and arguments.time_limit > 0):
        raise ValueError(f"--time-limit={arguments.time_limit}: a number of seconds above 0.")
    if arguments.memory_mib < 256:
        raise ValueError(f"--memory-mib={arguments.memory_mib}: at least 256, which Python and sympy need themselves.")


def main(argv: list[str] | None = None) -> None:
    """Entry point; exits with 2 where something is missing or wrong."""
    run_tool(make_parser(), check_and_score, argv)


def check_and_score(arguments: argparse.Namespace) -> None:
    """Scores the file of the flags, prints the table, writes the counts.

    Raises:
        ValueError: A flag or a line of the file is wrong.
        OSError: A file cannot be read or written.
        RuntimeError: Packages are missing, or child processes cannot be started.
    """
    check_arguments(arguments)
    counts = score(arguments)
    show(counts, Console(highlight=False))
    if arguments.json is not None:
        write_json(arguments.json, counts)


def score(arguments: argparse.Namespace) -> dict[str, Any]:
    """Scores the file, with a bar on a terminal.

    Raises:
        ValueError: A line of the file is not a row of the task.
        OSError: The file cannot be read.
        RuntimeError: Child processes cannot be started.
    """
    rows = read_rows(arguments.file, arguments.task)
    limits = Limits(seconds=arguments.time_limit, memory_mib=arguments.memory_mib)
    with progress(arguments.task, len(rows), MofNCompleteColumn()) as advance:
        scores = score_rows(rows, arguments.task, arguments.scorer, limits, arguments.workers, lambda: advance(1))
    return summarize(rows, scores, arguments.task, arguments.scorer)


def show(counts: dict[str, Any], console: Console) -> None:
    """Prints the table."""
    table = Table(title=f"{counts['task']}, {counts['scorer']} scorer, version {counts['scorer_version']}")
    for name in ("", "count", "of", "share", "95 % interval"):
        table.add_column(name, justify="left" if name == "" else "right")
    interval = counts["solved_interval"]
    shown = "" if interval is None else f"{interval[0]:.1%} to {interval[1]:.1%}"
    solved = [f"{counts['solved']:,}", f"{counts['generations']:,}", f"{counts['solved_share']:.1%}", shown]
    if counts["parts"] == "answers":
        table.add_row("correct", *solved)
    else:
        parts = [f"{counts['correct']:,}", f"{counts['total']:,}", f"{counts['accuracy']:.1%}"]
        table.add_row(f"correct {counts['parts']}", *parts)
        table.add_row("solved", *solved)
    for k, share in counts["pass_at_k"].items():
        table.add_row(f"pass@{k}", "", f"{counts['rows']:,}", f"{share:.1%}")
    for name in ("parse_failures", "timeouts"):
        table.add_row(name.replace("_", " "), f"{counts[name]:,}", f"{counts['generations']:,}")
    if counts["without_ground_truth"]:
        table.add_row("without ground truth", f"{counts['without_ground_truth']:,}", f"{counts['rows']:,}")
    console.print(table)


if __name__ == "__main__":
    main()
