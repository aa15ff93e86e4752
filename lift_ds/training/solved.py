"""What a run solved before and after training, by task and level: read from its metrics file, shown as a table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.table import Table
from rich.text import Text

from lift_ds.data.tasks import TASKS, TOP_CELLS
from lift_ds.evaluation.asking.solve import TaskScore
from lift_ds.storage.run_folder import read_metrics

BAR_WIDTH = 14
MARKS = {"solved": ("#", "█", "blue"), "gained": ("+", "█", "green"), "lost": ("-", "█", "red"), "": (".", "·", "dim")}
"""How a part of a bar is drawn: in plain text, in a terminal, and its colour there."""


@dataclass(frozen=True)
class Line:
    """A line of the table.

    Args:
        label: A level with what it holds, a task, or what all are.
        is_level: Whether it is one level of the task above it; the others are sums.
    """

    label: str
    before: TaskScore
    after: TaskScore
    is_level: bool = False

    @classmethod
    def total(cls, label: str, lines: list[Line]) -> Line:
        """The sum of lines."""
        before, after = (TaskScore.total([getattr(line, side) for line in lines]) for side in ("before", "after"))
        return cls(label, before, after)


def solved_lines(metrics_path: Path) -> list[Line]:
    """Each task with its levels, then `top` (the items of earlier versions), then all; none without both measurements.

    There is no `top` where it is all, or nothing. Records of earlier versions, which know no levels, have a line for
    each task.

    Raises:
        ValueError: The items before and after training are not of the same tasks and levels.
    """
    records = {record["moment"]: record for record in read_metrics(metrics_path, "solve")}
    if not {"before", "after"} <= set(records):
        return []
    before, after = records["before"], records["after"]
    if set(before["scores"]) != set(after["scores"]):
        raise ValueError(f"{metrics_path}: other tasks and levels were measured before training than after it.")
    by_task: dict[str, list[Line]] = {}
    for name, score in sorted(after["scores"].items()):
        task, _, level = name.partition("/")
        pair = TaskScore(**before["scores"][name]), TaskScore(**score)
        by_task.setdefault(task, []).append(Line(_level_label(task, level), *pair, is_level=bool(level)))
    lines = []
    for task in sorted(by_task, key=lambda task: [*TASKS, task].index(task)):
        lines.append(Line.total(task, by_task[task]))
        lines += [line for line in by_task[task] if line.is_level]
    in_all = Line.total("all", [line for of_task in by_task.values() for line in of_task])
    if 0 < after.get("top", {}).get("num_items", 0) < in_all.after.num_items:
        lines.append(Line("top", TaskScore(**before["top"]), TaskScore(**after["top"])))
    return [*lines, in_all]


def _level_label(task: str, level: str) -> str:
    """A level by its number and, as far as this version knows it, by what it holds."""
    known = TASKS[task].levels if task in TASKS else ()
    return f"{level}: {known[int(level) - 1]}" if level and int(level) <= len(known) else level


def solved_table(lines: list[Line], is_plain: bool) -> Table:
    """The table, with a bar for each line; `is_plain` is for files, in ASCII alone."""
    caption = Text.assemble(
        "bars:", *(part for name in MARKS if name for part in (" ", _mark(name, 1, is_plain), " ", name))
    )
    if any(line.label == "top" for line in lines):
        caption.append(f"; top: the last level of {', '.join(cell.task for cell in TOP_CELLS)}")
    table = Table(
        title="Held-out items, before -> after fine-tuning",
        caption=caption,
        box=None if is_plain else box.SIMPLE_HEAD,
        padding=(0, 2, 0, 0),
        show_edge=False,
    )
    table.add_column("task and level", no_wrap=True)
    for heading in ("items", "no parse", "solved"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for line in lines:
        pair = (line.before, line.after)
        failures = " -> ".join(f"{100 * each.parse_failure_rate:.0f}" for each in pair)
        solved = " -> ".join(f"{100 * each.solve_rate:.1f}" for each in pair)
        label = f"  {line.label}" if line.is_level else line.label
        cells = (label, str(line.after.num_items), f"{failures} %", f"{solved} %", _bar(line, is_plain))
        table.add_row(*cells, style=None if line.is_level else "bold")
    return table


def _bar(line: Line, is_plain: bool) -> Text:
    before, after = (round(each.solve_rate * BAR_WIDTH) for each in (line.before, line.after))
    lengths = {"solved": min(before, after), "gained": max(after - before, 0), "lost": max(before - after, 0)}
    lengths[""] = BAR_WIDTH - sum(lengths.values())
    return Text.assemble(*(_mark(part, length, is_plain) for part, length in lengths.items()))


def _mark(part: str, length: int, is_plain: bool) -> Text:
    plain, block, color = MARKS[part]
    return Text(plain * length) if is_plain else Text(block * length, color)
