"""What `tools/evaluate.py` shows: a table that grows while it answers, and the results."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from lift_ds.evaluation.asking.run import TaskPlan, TaskProgress
from lift_ds.evaluation.compare import TaskComparison

from .tool import figures, percent_range

LINE_EVERY_SECONDS = 60
WIDTH = 130  # of tables where no terminal says how wide it is


def wide_console() -> Console:
    """Where tables go."""
    console = Console(highlight=False, markup=False)  # paths may have brackets
    return console if console.is_terminal else Console(highlight=False, markup=False, width=WIDTH)


class LiveTable:
    """A row for each task; without a terminal a line now and then."""

    def __init__(self, plans: Sequence[TaskPlan]) -> None:
        self.console = wide_console()
        self.rows: dict[str, list[str]] = {plan.name: row_of(TaskProgress(plan)) for plan in plans}
        self.live = Live(self.table(), console=self.console, refresh_per_second=4, transient=True)
        self.last_line = time.monotonic()

    def table(self) -> Table:
        """The table as it stands."""
        table = figures(
            "answering", ("task",), ("answers", "solved so far", "no answer", "cut", "forwards", "tokens/s")
        )
        for name, row in self.rows.items():
            table.add_row(name, *row)
        return table

    def show(self, progress: TaskProgress) -> None:
        """Shows what has been done of a task."""
        name = progress.plan.name
        self.rows[name] = row_of(progress)
        if self.console.is_terminal:
            self.live.update(self.table())
        elif time.monotonic() - self.last_line > LINE_EVERY_SECONDS:
            self.last_line = time.monotonic()
            answers, solved, *_ = self.rows[name]
            self.console.print(f"{name}: {answers} answers, {solved} solved so far")

    def __enter__(self) -> LiveTable:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *failure: object) -> None:
        if self.console.is_terminal:
            self.live.stop()


def row_of(progress: TaskProgress) -> list[str]:
    """A task's row, without its name."""
    samples, scores = list(progress.samples.values()), progress.scores_so_far()
    total = len(progress.plan.problems) * progress.plan.num_samples
    if not samples or not scores:
        return [f"{len(samples)}/{total}", "", "", "", "", ""]
    tokens = sum(sample.answer.num_denoised for sample in samples)
    return [
        f"{len(samples)}/{total}",
        f"{sum(score.is_solved for score in scores) / len(scores):.1%} of {len(scores)}",
        f"{sum(not score.is_parsed for score in scores) / len(scores):.1%}",
        f"{sum(not sample.answer.is_ended for sample in samples) / len(samples):.1%}",
        f"{sum(sample.answer.num_forwards for sample in samples) / len(samples):.1f}",
        f"{tokens / sum(sample.seconds for sample in samples):,.0f}",
    ]


def print_results(results: dict[str, Any], folder: Path, console: Console) -> None:
    """Prints what `results.json` holds: a row for each task and scorer, a line on the cost of each task."""
    title = f"{results['environment']['model']}, protocol {results['environment']['protocol']}"
    headings = ("problems", "solved", "95 % interval", "no answer", "time-outs")
    table = figures(title, ("task", "scorer"), headings)
    for task, measured in results["tasks"].items():
        for scorer, summary in measured["scores"].items():
            rows, *failures = (f"{summary[name]:,}" for name in ("rows", "parse_failures", "timeouts"))
            share, interval = f"{summary['solved_share']:.1%}", percent_range(summary["solved_interval"])
            table.add_row(task, scorer, rows, share, interval, *failures)
    console.print(table)
    for task, measured in results["tasks"].items():
        for line in further_lines(task, measured):
            console.print(line, soft_wrap=True)
    console.print(f"results: {folder / 'results.json'}", soft_wrap=True)


def further_lines(task: str, measured: dict[str, Any]) -> Iterator[str]:
    """What a task's row has no column for: shares of cells, pass@k, and the cost."""
    for scorer, summary in measured["scores"].items():
        if summary["parts"] != "answers":
            share = f"{summary['correct']:,} of {summary['total']:,} {summary['parts']} ({summary['accuracy']:.1%})"
            yield f"{task}, {scorer}: {share}"
        if summary["pass_at_k"]:
            rates = "  ".join(f"pass@{k} {share:.1%}" for k, share in summary["pass_at_k"].items())
            yield f"{task}, {scorer}: {rates}"
    cost = measured["generation"]
    yield (
        f"{task}: {cost['forwards_per_sample']:.1f} forwards an answer, {cost['tokens_per_forward']:.2f} tokens a "
        f"forward, {cost['tokens_per_second']:,.0f} tokens/s, {cost['truncated']:,} of {cost['samples']:,} cut"
    )


def print_comparison(comparisons: Sequence[TaskComparison], labels: tuple[str, str], console: Console) -> None:
    """Prints a row for each task that two evaluations have in common."""
    title = f"first: {labels[0]}, second: {labels[1]}"
    headings = ("problems", "first", "second", "difference", "95 % interval", "only first", "only second", "McNemar p")
    table = figures(title, ("task", "scorer"), headings)
    for comparison in comparisons:
        difference = comparison.difference
        solved = [f"{comparison.num_problems:,}", *(f"{share:.1%}" for share in comparison.solved)]
        differ = [f"{difference.mean:+.1%}", f"{difference.low:+.1%} to {difference.high:+.1%}"]
        only = [str(comparison.only_first), str(comparison.only_second)]
        p_value = "" if comparison.p_value is None else f"{comparison.p_value:.3g}"
        table.add_row(comparison.task, comparison.scorer, *solved, *differ, *only, p_value)
    console.print(table)
