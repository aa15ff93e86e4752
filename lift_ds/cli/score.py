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

from lift_ds.evaluation.judging import SCORER_VERSIONS
from lift_ds.evaluation.sandbox import Limits
from lift_ds.evaluation.score_file import check_task, read_rows, score_rows, summarize
from lift_ds.evaluation.tasks import EVAL_TASKS

from .tool import check_counts, check_writable, figures, flag, percent_range, progress, tool, write_json


def show(counts: dict[str, Any]) -> None:
    """Prints the table."""
    title = f"{counts['task']}, {counts['scorer']} scorer, version {counts['scorer_version']}"
    table = figures(title, ("",), ("count", "of", "share", "95 % interval"))
    has_parts = counts["parts"] != "answers"
    if has_parts:
        parts = [f"{counts['correct']:,}", f"{counts['total']:,}", f"{counts['accuracy']:.1%}"]
        table.add_row(f"correct {counts['parts']}", *parts)
    solved = [f"{counts['solved']:,}", f"{counts['generations']:,}", f"{counts['solved_share']:.1%}"]
    table.add_row("solved" if has_parts else "correct", *solved, percent_range(counts["solved_interval"]))
    for k, share in counts["pass_at_k"].items():
        table.add_row(f"pass@{k}", "", f"{counts['rows']:,}", f"{share:.1%}")
    for name in ("parse_failures", "timeouts"):
        table.add_row(name.replace("_", " "), f"{counts[name]:,}", f"{counts['generations']:,}")
    if counts["without_ground_truth"]:
        table.add_row("without ground truth", f"{counts['without_ground_truth']:,}", f"{counts['rows']:,}")
    Console(highlight=False).print(table)


@tool(
    __doc__,
    flag("file", type=Path, help="JSON Lines"),
    flag("--task", required=True, help=", ".join(EVAL_TASKS)),
    flag(
        "--scorer",
        required=True,
        help=f"{' or '.join(SCORER_VERSIONS)}: count as the published evaluation does, or count what is right",
    ),
    flag("--json", type=Path, metavar="OUT", help="write counts and a record of each generation there"),
    flag("--workers", type=int, default=1, help="rows that are scored at a time (default 1)"),
    flag(
        "--time-limit", type=float, default=Limits.seconds, metavar="SECONDS", help="of one check (default %(default)s)"
    ),
    flag("--memory-mib", type=int, default=Limits.memory_mib, help="address space of one check (default %(default)s)"),
)
def main(arguments: argparse.Namespace) -> None:
    """Scores the file with a bar on a terminal, prints the table, writes the counts."""
    check_task(arguments.task, arguments.scorer)
    if arguments.json is not None:
        check_writable(arguments.json, "--json")
    check_counts(arguments, "workers")
    if not (math.isfinite(arguments.time_limit) and arguments.time_limit > 0):
        raise ValueError(f"--time-limit={arguments.time_limit}: a number of seconds above 0.")
    if arguments.memory_mib < 256:
        raise ValueError(f"--memory-mib={arguments.memory_mib}: at least 256, which Python and sympy need themselves.")
    rows = read_rows(arguments.file, arguments.task)
    limits = Limits(seconds=arguments.time_limit, memory_mib=arguments.memory_mib)
    with progress(arguments.task, len(rows), MofNCompleteColumn()) as advance:
        scores = score_rows(rows, arguments.task, arguments.scorer, limits, arguments.workers, lambda: advance(1))
    counts = summarize(rows, scores, arguments.task, arguments.scorer)
    show(counts)
    if arguments.json is not None:
        write_json(arguments.json, counts)
