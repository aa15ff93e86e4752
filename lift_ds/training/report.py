"""The table at the end of a run: solve rates before and after, and where the files are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from .metrics import read_metrics


def print_summary(metrics_path: Path, files: dict[str, Path]) -> None:
    """Prints what `metrics.jsonl` holds of a finished run.

    Args:
        metrics_path: The run's `metrics.jsonl`.
        files: Label and place of what the run wrote.
    """
    console = Console()
    solves = {record["moment"]: record for record in read_metrics(metrics_path, "solve")}
    if "before" in solves and "after" in solves:
        console.print(solve_table(solves["before"], solves["after"]))
    heldout = read_metrics(metrics_path, "heldout")
    if heldout and heldout[0]["mean"] is not None:
        first, last = heldout[0], heldout[-1]
        console.print(
            f"held-out loss  {first['mean']:.4f} (step {first['step']}) -> {last['mean']:.4f} (step {last['step']})",
            highlight=False,
        )
    steps = read_metrics(metrics_path, "step")
    if steps:
        speed = sum(step["num_tokens"] for step in steps) / sum(step["seconds"] for step in steps)
        console.print(f"training       {len(steps)} steps, {speed:,.0f} tokens/s", highlight=False)
    for label, path in files.items():
        console.print(f"{label:<14} {path}", highlight=False, soft_wrap=True)


def solve_table(before: dict[str, Any], after: dict[str, Any]) -> Table:
    """Solve and parse-failure rates of held-out items, by task and in all."""
    table = Table(title="Held-out items, before -> after fine-tuning")
    table.add_column("task")
    for heading in ("items", "no parse", "solved"):
        table.add_column(heading, justify="right")
    rows = {name: (before["scores"][name], after["scores"][name]) for name in after["scores"]}
    totals = tuple(
        {key: sum(pair[side][key] for pair in rows.values()) for key in ("num_items", "num_unparsed", "num_solved")}
        for side in (0, 1)
    )
    for name, (first, last) in {**rows, "all": totals}.items():
        table.add_row(
            name,
            str(last["num_items"]),
            *(f"{share(first, key)} -> {share(last, key)}" for key in ("num_unparsed", "num_solved")),
            style="bold" if name == "all" else None,
        )
    return table


def share(score: dict[str, int], key: str) -> str:
    """A count as a percentage of the items."""
    return f"{100 * score[key] / max(score['num_items'], 1):.1f} %"
