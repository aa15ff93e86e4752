"""A picture of what a run solved before and after training, made from its metrics file.

python -c "from lift_ds.training.solved_picture import write_picture; write_picture('runs/001')"
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from lift_ds.evaluation.judging.statistics import wilson_interval
from lift_ds.storage.run_folder import METRICS_FILE

from .solved import Line, solved_lines

PICTURE_FILE = "solved.png"
COLORS = {True: ("#dcdfe4", "#7fb0d8"), False: ("#b2b8c1", "#1f6fb4")}  # before and after, of a level and of a sum
INK, GRID = "#3a3f47", "#e8eaee"
HEIGHT, GAP = 0.38, 0.55  # of a bar, and above a task; lines are 1 apart


def write_picture(run_folder: str | Path) -> Path:
    """Writes `solved.png` into a run's folder and returns its path.

    Raises:
        ValueError: No items were measured before and after training; or as of `solved_lines`.
    """
    folder = Path(run_folder)
    lines = solved_lines(folder / METRICS_FILE)
    if not lines:
        raise ValueError(f"{folder / METRICS_FILE}: no solve rates before and after training (eval.solve_items).")
    figure = draw(lines)
    figure.savefig(folder / PICTURE_FILE, dpi=130)
    plt.close(figure)
    return folder / PICTURE_FILE


def draw(lines: list[Line]) -> Any:
    """Two bars a line, before and after, with 95 % intervals of the latter; levels stand below their task."""
    places = [place + GAP * sum(not line.is_level for line in lines[: place + 1]) for place, line in enumerate(lines)]
    figure, axis = plt.subplots(figsize=(8.4, 1.0 + 0.3 * places[-1]), layout="constrained")
    for place, line in zip(places, lines, strict=True):
        _draw_line(axis, place, line)
    axis.set(xlim=(0, 100), ylim=(places[-1] + 0.6, places[0] - 0.6))
    axis.set_xlabel("solved, % of held-out items (how many they are stands in brackets)", color=INK)
    labels = [line.label if line.is_level else f"{line.label} ({line.after.num_items})" for line in lines]
    axis.set_yticks(places, labels)
    for label, line in zip(axis.get_yticklabels(), lines, strict=True):
        label.set(fontweight="normal" if line.is_level else "bold")
    axis.grid(axis="x", color=GRID)
    axis.set_axisbelow(True)
    axis.tick_params(length=0, labelcolor=INK)
    axis.spines[:].set_visible(False)
    for color, side in zip(COLORS[False], ("before", "after"), strict=True):
        axis.barh(0, 0, color=color, label=side)
    axis.plot([], [], color=INK, linewidth=1, label="95 % interval")
    figure.legend(loc="outside upper right", ncols=3, frameon=False, labelcolor=INK)
    figure.suptitle("Solved before and after fine-tuning", x=0.01, ha="left", fontweight="bold", color=INK)
    return figure


def _draw_line(axis: Any, place: float, line: Line) -> None:
    before, after = (100 * each.solve_rate for each in (line.before, line.after))
    axis.barh((place - HEIGHT / 2, place + HEIGHT / 2), (before, after), HEIGHT, color=COLORS[line.is_level])
    low, high = (100 * bound for bound in wilson_interval(line.after.num_solved, line.after.num_items))
    axis.hlines(place + HEIGHT / 2, low, high, color=INK, linewidth=1)
    text = f"{before:.0f} → {after:.0f} %"
    axis.text(101.5, place, text, va="center", color=INK, fontweight="normal" if line.is_level else "bold")
