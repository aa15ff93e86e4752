"""What runs find easy and which rows stay hard: from their checkpoints, and from what `tools/learnability.py` wrote."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from typing import Any

import numpy as np

from lift_ds.evaluation.hardest import ROWS_FILE, RowHardness, rank_rows
from lift_ds.evaluation.heldout import class_label
from lift_ds.evaluation.learnability import from_difficulty
from lift_ds.evaluation.learnability_page import draw_map, gold_grid
from lift_ds.storage.manifest import DIFFICULTY_FOLDER
from lift_ds.text_files import load_json, read_text
from lift_ds.training.buffers import read_table
from lift_ds.training.memory_files import memory_files, read_rows

from .parts import Part, Table
from .plots import FROM_ZERO, WIDTH, Figure, Key, drawing, plot_lines, svg_of
from .runs import ReportedRun
from .series import Points

REPORT_FOLDER = "learnability"  # in a run's, where tools/learnability.py writes
CSV_FILE = "learnability.csv"
NUM_ROWS = 15
NUM_BINS = 40


def learnability_part(runs: Sequence[ReportedRun]) -> Part:
    """Heat maps of p(gold): of the difficulty tables in checkpoints, and those that were measured."""
    part = Part(
        "Learnability",
        ["Mean p(gold) of masked tokens, by how often they occur (rows) and how much is masked; empty: not seen."],
    )
    without = []
    for run in runs:
        figures = [*table_maps(run, part), *measured_maps(run, part)]
        part.figures += figures
        if not figures:
            without.append(run.label)
    part.lack(
        "learnability map",
        without,
        len(runs),
        "difficulty.enabled keeps a table in checkpoints; tools/learnability.py measures",
    )
    return part


def table_maps(run: ReportedRun, part: Part) -> list[Figure]:
    """Of the oldest and the newest checkpoint that has a difficulty table."""
    having = [path for path in run.folder.checkpoints if (path / DIFFICULTY_FOLDER).is_dir()]
    figures = []
    for checkpoint in dict.fromkeys([*having[:1], *having[-1:]]):
        try:
            table = read_table(checkpoint)
        except Exception as error:  # whatever a damaged file makes of its reader
            part.missing.append(f"{checkpoint}: its difficulty table cannot be read: {error}")
            continue
        learnability = from_difficulty(table.sums, table.counts)
        cells, levels = learnability.cells(), learnability.levels
        grid = gold_grid(cells, list(cells), len(levels))
        caption = "From the difficulty table that training filled: frequencies are decayed counts, means geometric."
        figures.append(
            heat_map(f"{run.label}, {checkpoint.name}", grid, levels, list(map(class_label, cells)), caption)
        )
    return figures


def measured_maps(run: ReportedRun, part: Part) -> list[Figure]:
    """Of the models that `tools/learnability.py` measured."""
    path = run.folder.folder / REPORT_FOLDER / CSV_FILE
    if not path.is_file():
        return []
    figures = []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = list(csv.DictReader(file))
        for model in dict.fromkeys(line["model"] for line in lines):
            own = [line for line in lines if line["model"] == model]
            names = list(dict.fromkeys(line["token_count"] for line in own))
            levels = list(dict.fromkeys(float(line["t"]) for line in own))
            grid = np.full((len(names), len(levels)), np.nan)
            for line in own:
                grid[names.index(line["token_count"]), levels.index(float(line["t"]))] = float(line["mean_p_gold"])
            figures.append(heat_map(f"{run.label}, {model}", grid, levels, names, f"From {path}."))
    except (OSError, ValueError, KeyError, TypeError) as error:
        part.missing.append(f"{path}: cannot be read: {error!r}; measure again with tools/learnability.py.")
    return figures


def heat_map(title: str, grid: np.ndarray, levels: Sequence[float], names: Sequence[str], caption: str) -> Figure:
    """A map for the page."""
    with drawing(WIDTH, 1.1 + 0.22 * len(names)) as (figure, axis):
        image = draw_map(axis, np.ma.masked_invalid(grid), levels, names)
        axis.tick_params(length=0)
        figure.colorbar(image, ax=axis, shrink=0.9, aspect=30).outline.set_visible(False)
        svg = svg_of(figure, title)
    return Figure(title, svg, caption)


def hardest_part(runs: Sequence[ReportedRun]) -> Part:
    """Rows that stayed hard, by the difficulty memory of the newest checkpoint."""
    part = Part("Hardest rows", ["Mean nats of a row's tokens beyond what such tokens cost at such levels."])
    ranked: list[tuple[ReportedRun, list[RowHardness]]] = []
    for run in runs:
        try:
            having = [path for path in run.folder.checkpoints if memory_files(path)]
            rows = rank_rows(read_rows(having[-1])) if having else []
        except Exception as error:  # whatever a damaged file makes of its reader
            part.missing.append(f"{run.label}: its difficulty memory cannot be read: {error}")
            continue
        if rows:
            ranked.append((run, rows))
            part.lines.append(f"{run.label}: {len(rows):,} rows were seen by {having[-1].name}.")
            add_rows(part, run, rows)
    without = [run.label for run in runs if run.label not in {run.label for run, _ in ranked}]
    part.lack("difficulty memory", without, len(runs), "objective.scoring=memory keeps one in checkpoints")
    if ranked:
        part.figures.append(spread_of(ranked))
    return part


def add_rows(part: Part, run: ReportedRun, rows: Sequence[RowHardness]) -> None:
    """The hardest rows with their text where the run's folder has it, else by their numbers."""
    path = run.folder.folder / REPORT_FOLDER / ROWS_FILE
    if path.is_file():
        try:
            loaded: dict[str, Any] = load_json(read_text(path))
            sections = [(section["heading"], shown_rows(section["rows"])) for section in loaded["sections"]]
            part.rows += [(f"{run.label}: {heading}", listed) for heading, listed in sections]
            return
        except (OSError, ValueError, KeyError, TypeError) as error:
            part.missing.append(
                f"{path}: cannot be read: {error!r}; write it again with tools/learnability.py --memory."
            )
    else:
        part.missing.append(
            f"No text of the rows of {run.label}: `python tools/learnability.py {run.folder.folder} --memory` adds it."
        )
    cells = [
        [f"row {row.sample_id}", f"{row.hardness:.2f}", f"{row.num_seen} of {row.size}"] for row in rows[:NUM_ROWS]
    ]
    headings = ("row", "hardness", "tokens seen")
    part.tables.append(Table(headings, cells, f"{run.label}: the {len(cells)} hardest of {len(rows):,} rows"))


def shown_rows(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first rows, as `rows.html` takes them."""
    return [
        {
            "where": str(row["where"]),
            "hardness": float(row["hardness"]),
            "before": None if row["before"] is None else float(row["before"]),
            "question": str(row["question"]),
            "answer": [(str(text), bool(is_marked)) for text, is_marked in row["answer"]],
        }
        for row in rows[:NUM_ROWS]
    ]


def spread_of(ranked: Sequence[tuple[ReportedRun, Sequence[RowHardness]]]) -> Figure:
    """How many rows are how hard."""
    values = [np.array([row.hardness for row in rows]) for _, rows in ranked]
    low, high = min(each.min() for each in values), max(each.max() for each in values)
    edges = np.linspace(low, high if high > low else low + 1, NUM_BINS + 1)
    curves: list[tuple[Key, Points]] = []
    for (run, _), each in zip(ranked, values, strict=True):
        counts = np.histogram(each, edges)[0].astype(float)
        middles = (edges[:-1] + edges[1:]) / 2
        curves.append((run.key, Points(middles, counts, counts, counts, 1)))
    return plot_lines("Rows by hardness", curves, "Number of rows.", "hardness, nats", style=FROM_ZERO)
