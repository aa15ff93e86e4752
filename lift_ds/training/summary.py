"""The last lines of a run: what it solved, its losses and speed, and where its files are."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

from lift_ds.storage.run_folder import METRICS_FILE, read_metrics

from .solved import Line, solved_lines, solved_table


def print_summary(output: Path, files: dict[str, Path]) -> None:
    """Prints what the metrics of a finished run hold, and where its files are, by label; draws `solved.png`."""
    console, metrics_path = Console(), output / METRICS_FILE
    lines: list[Line] = []
    try:
        lines = solved_lines(metrics_path)
    except ValueError as error:  # the run is done: its other lines are still worth reading
        console.print(f"no solve rates: {error}", highlight=False, soft_wrap=True)
    if lines:
        console.print(solved_table(lines, is_plain=not console.is_terminal))
    heldout = read_metrics(metrics_path, "heldout")
    if heldout and heldout[0]["mean"] is not None:
        losses = " -> ".join(f"{at['mean']:.4f} (step {at['step']})" for at in (heldout[0], heldout[-1]))
        console.print(f"held-out loss  {losses}", highlight=False)
    steps = read_metrics(metrics_path, "step")
    if steps:
        speed = sum(step["num_tokens"] for step in steps) / sum(step["seconds"] for step in steps)
        console.print(f"training       {len(steps)} steps, {speed:,.0f} tokens/s", highlight=False)
    if lines and find_spec("matplotlib") is None:
        console.print("picture        not drawn: pip install 'lift_ds[report]'", highlight=False, markup=False)
    elif lines:
        from .solved_picture import write_picture

        files = files | {"picture": write_picture(output)}
    for label, path in files.items():
        console.print(f"{label:<14} {path}", highlight=False, soft_wrap=True)
