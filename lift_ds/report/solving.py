"""What runs solved: their own held-out items before and after training, and the evaluations in their folders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from lift_ds.evaluation.asking.results import RESULTS_FILE
from lift_ds.evaluation.compare import compare, read_results
from lift_ds.evaluation.judging.statistics import mcnemar, wilson_interval
from lift_ds.storage.run_folder import METRICS_FILE
from lift_ds.training.solved import Line, lines_of

from .curves import points_of
from .parts import UNKNOWN, Part, Table, number
from .plots import FROM_ZERO, Key, Shares, plot_lines, plot_shares
from .runs import ReportedRun

DEEPEST = 3  # folders below a run's, in which results of evaluations are looked for
HARNESS_RESULTS = "harness.json"
SEED = 0  # of the bootstrap
ITEMS = ("eval.solve_items", "eval.solve_data", "data.builtin_seed")  # the same ones have the same items


def solving_part(runs: Sequence[ReportedRun]) -> Part:
    """Held-out items that were answered before, while and after runs trained."""
    part = Part("Solved before and after training")
    lines: dict[str, list[Line]] = {}
    for run in runs:
        try:
            lines[run.label] = lines_of(run.folder.of_kind("solve"), run.folder.folder / METRICS_FILE)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            part.missing.append(f"No solve rates of {run.label}: {error}")
            lines[run.label] = []
    measured = [run for run in runs if lines[run.label]]
    without = [run.label for run in runs if run not in measured]
    part.lack("solve rates before and after", without, len(runs), "eval.solve_items=0, or it has not come to its end")
    if measured:
        rows = list(dict.fromkeys((line.label, line.is_level) for run in measured for line in _named(lines[run.label])))
        labels = [label for label, _ in rows]
        found = {run.label: {line.label: line for line in _named(lines[run.label])} for run in measured}
        sides = [_shares(run.key, found[run.label], labels) for run in measured]
        caption = "Ring: before. Dot: after, with its 95 % interval."
        numbers = [label.partition(":")[0] for label in labels]  # what a level holds stands in the table
        part.figures.append(plot_shares("Solved, by task and level", numbers, sides, caption))
        part.tables.append(_solved_table(measured, found, rows))
    during = [(run, [each for each in run.folder.of_kind("solve") if each.get("moment") == "during"]) for run in runs]
    curves = [(run.key, points_of(records, "solve_rate")) for run, records in during if records]
    if curves:
        part.figures.append(
            plot_lines("Solved while it trains", curves, "Share of eval.solve_subset.", style=FROM_ZERO)
        )
    part.lack(
        "solve rates while it trains",
        [run.label for run, records in during if not records],
        len(runs),
        "eval.solve_every=0",
    )
    if pairs := _paired_rows(measured):
        headings = ("same items", "first", "second", "only first", "only second", "McNemar p")
        part.tables.append(Table(headings, pairs, "Item by item"))
    return part


def _named(lines: Sequence[Line]) -> list[Line]:
    """Lines by names of their own: levels of two tasks may be called the same."""
    named, task = [], ""
    for line in lines:
        task = task if line.is_level else line.label
        label = f"{task} {line.label}" if line.is_level else line.label
        named.append(Line(label, line.before, line.after, line.is_level))
    return named


def _shares(key: Key, lines: dict[str, Line], labels: Sequence[str]) -> Shares:
    after: list[tuple[float, float, float] | None] = []
    before: list[float | None] = []
    for label in labels:
        line = lines.get(label)
        has_items = line is not None and line.after.num_items > 0
        before.append(line.before.solve_rate if line is not None and has_items else None)
        if line is None or not has_items:
            after.append(None)
            continue
        interval = wilson_interval(line.after.num_solved, line.after.num_items)
        after.append((line.after.solve_rate, *interval))
    return Shares(key, after, before)


def _solved_table(
    runs: Sequence[ReportedRun], found: dict[str, dict[str, Line]], rows: Sequence[tuple[str, bool]]
) -> Table:
    cells = []
    for label, _ in rows:
        lines = [found[run.label].get(label) for run in runs]
        counts = list(dict.fromkeys(str(line.after.num_items) for line in lines if line is not None))
        shares = [
            UNKNOWN if line is None else f"{100 * line.before.solve_rate:.1f} → {100 * line.after.solve_rate:.1f} %"
            for line in lines
        ]
        cells.append([label, " / ".join(counts), *shares])
    headings = ("task and level", "items", *(run.label for run in runs))
    return Table(headings, cells, marks=["" if is_level else "sum" for _, is_level in rows])


def _paired_rows(runs: Sequence[ReportedRun]) -> list[list[str]]:
    """Before against after of each run, and the runs among each other after training, on the same items."""
    solved = {
        (run.label, record["moment"]): record["solved"]
        for run in runs
        for record in run.folder.of_kind("solve")
        if record.get("moment") in ("before", "after") and isinstance(record.get("solved"), str)
    }
    pairs = [(f"{run.label}: before, after", (run.label, "before"), (run.label, "after")) for run in runs]
    pairs += [
        (f"after: {one.label}, {two.label}", (one.label, "after"), (two.label, "after"))
        for one, two in combinations(runs, 2)
        if [one.settings.get(key) for key in ITEMS] == [two.settings.get(key) for key in ITEMS]
    ]
    rows = []
    for name, *sides in pairs:
        first, second = (solved.get(side, "") for side in sides)
        if not first or len(first) != len(second):
            continue
        alone = [sum(pair == wanted for pair in zip(first, second, strict=True)) for wanted in (("1", "0"), ("0", "1"))]
        shares = [f"{each.count('1') / len(each):.1%}" for each in (first, second)]
        rows.append([name, *shares, *map(str, alone), f"{mcnemar(*alone):.3g}"])
    return rows


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation left: its folder, how plots name it, and `results.json`."""

    folder: Path
    key: Key
    results: dict[str, Any]


def find_evaluations(runs: Sequence[ReportedRun], named: Sequence[Path], part: Part) -> list[Evaluation]:
    """Results of evaluations in the runs' folders, and those that are named; the part says what cannot be read."""
    folders = []
    for run in runs:
        root = run.folder.folder
        below = ["*/" * depth for depth in range(1, DEEPEST + 1)]
        results = [path for folder in below for path in root.glob(f"{folder}{RESULTS_FILE}")]
        for path in sorted(results, key=lambda path: path.stat().st_mtime):  # the first one was probably made before
            folders.append((path.parent, f"{run.label}/{path.parent.relative_to(root)}"))
        for path in sorted(path for folder in below for path in root.glob(f"{folder}{HARNESS_RESULTS}")):
            part.missing.append(f"{path}: of lm-evaluation-harness, whose tasks are not compared here.")
    folders += [(folder, str(folder)) for folder in named]
    found: list[Evaluation] = []
    for folder, name in folders:
        try:
            found.append(Evaluation(folder, Key(name, len(found)), read_results(folder)))
        except ValueError as error:
            part.missing.append(str(error))
    return found


def evaluations_part(runs: Sequence[ReportedRun], named: Sequence[Path]) -> Part:
    """Evaluations of the runs' models, task by task, and against the first."""
    part = Part("Evaluations")
    found = find_evaluations(runs, named, part)
    if not found:
        part.missing.append(
            "No results of tools/evaluate.py in the runs' folders: give it --output RUN/evaluation, or name its folder "
            "with --evaluation."
        )
        return part
    facts = []
    for each in found:
        environment = each.results.get("environment", {})
        facts.append([each.key.label, str(environment.get("model", "?")), str(environment.get("protocol", "?"))])
    part.tables.append(Table(("evaluation", "model", "protocol"), facts, "What was evaluated", 3))
    rows = list(
        dict.fromkeys(
            (task, scorer)
            for each in found
            for task, of_task in each.results["tasks"].items()
            for scorer in of_task["scores"]
        )
    )
    cells, sides = [], {each.key.label: list[tuple[float, float, float] | None]() for each in found}
    for task, scorer in rows:
        row = [task, scorer]
        for each in found:
            summary = each.results["tasks"].get(task, {}).get("scores", {}).get(scorer, {})
            share, num_rows = summary.get("solved_share"), summary.get("rows")
            interval = summary.get("solved_interval") or (share, share)
            row.append(UNKNOWN if share is None else f"{share:.1%} of {number(num_rows, ',')}")
            sides[each.key.label].append(None if share is None else (share, *interval))
        cells.append(row)
    several = len({scorer for _, scorer in rows}) > 1
    labels = [f"{task}, {scorer}" if several else task for task, scorer in rows]
    shares = [Shares(each.key, sides[each.key.label]) for each in found]
    part.figures.append(plot_shares("Solved problems", labels, shares, "Dot: share solved, with its 95 % interval."))
    part.tables.append(Table(("task", "scorer", *(each.key.label for each in found)), cells, "Share solved", 2))
    if len(found) > 1:
        part.tables.append(_differences(found, part))
    return part


def _differences(found: Sequence[Evaluation], part: Part) -> Table:
    first, *others = found
    rows = []
    for other in others:
        try:
            compared = compare(first.folder, other.folder, None, SEED)
        except (ValueError, KeyError, TypeError) as error:
            part.missing.append(f"{other.key.label} against {first.key.label}: not compared item by item: {error}")
            continue
        for each in compared:
            mean, *ends = (
                f"{value:+.1%}" for value in (each.difference.mean, each.difference.low, each.difference.high)
            )
            alone = [str(each.only_first), str(each.only_second)]
            rows.append(
                [other.key.label, each.task, each.scorer, mean, " to ".join(ends), *alone, number(each.p_value, ".3g")]
            )
    headings = ("evaluation", "task", "scorer", "difference", "95 % interval", "only first", "only this", "McNemar p")
    return Table(headings, rows, f"Against {first.key.label}, item by item", 3)
