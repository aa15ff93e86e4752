"""Curves of training: losses, what was learned, rate and gradient; of several runs in one plot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lift_ds.evaluation.heldout import class_label
from lift_ds.training.metrics import COMPONENTS

from .parts import Part
from .plots import BAND, FROM_ZERO, PLAIN, Figure, Key, Style, plot_lines, plot_pairs, plot_parts
from .runs import ReportedRun
from .series import Points, banded, column, mean_of, points

BANDS = {"t up to 0.3": slice(0, 3), "t from 0.3 to 0.7": slice(3, 7), "t above 0.7": slice(7, 10)}
Column = Callable[[ReportedRun], np.ndarray]


def curves_of(runs: Sequence[ReportedRun], numbers: Column) -> list[tuple[Key, Points]]:
    """A curve of each run that has the numbers."""
    made = [(run.key, points(run.steps, numbers(run))) for run in runs]
    return [(key, curve) for key, curve in made if len(curve.steps)]


def compared(
    part: Part,
    runs: Sequence[ReportedRun],
    title: str,
    numbers: Column,
    caption: str = "",
    why: str = "",
    style: Style = PLAIN,
) -> None:
    """Adds a plot with a curve of each run, and says which have none."""
    curves = curves_of(runs, numbers)
    if curves:
        part.figures.append(plot_lines(title, curves, caption, style=style))
    have = {key.label for key, _ in curves}
    part.lack(title, [run.label for run in runs if run.label not in have], len(runs), why)


def divided(
    part: Part,
    runs: Sequence[ReportedRun],
    title: str,
    columns: dict[str, Column],
    caption: str = "",
    why: str = "",
    style: Style = PLAIN,
) -> None:
    """Adds a plot of several numbers: of one run, in one; of several, one for each number, so that runs compare."""
    if len(runs) > 1:
        for name, numbers in columns.items():
            compared(part, runs, f"{title}, {name}", numbers, caption, why, style=style)
        return
    (run,) = runs
    made = [
        (Key(name, index + 1), points(run.steps, numbers(run))) for index, (name, numbers) in enumerate(columns.items())
    ]
    curves = [(key, curve) for key, curve in made if len(curve.steps)]
    if curves:
        part.figures.append(plot_lines(title, curves, caption, style=style))
    part.lack(title, [run.label] if not curves else [], 1, why)


def of_component(name: str) -> Column:
    """The loss of learned tokens in documents of a component."""
    return lambda run: run.column("component_token_nll", name)


def in_band(band: slice) -> Column:
    """The loss of learned tokens in some tenths of the levels, each tenth by its documents."""
    return lambda run: banded(*(values[:, band] for values in run.by_level))


def share(top: str, bottom: str) -> Column:
    """One number of each step over another."""
    return lambda run: np.divide(
        run.column(top), run.column(bottom), out=np.full(len(run.steps), np.nan), where=run.column(bottom) > 0
    )


def training_part(runs: Sequence[ReportedRun]) -> Part:
    """Loss, components, levels, rate, gradient."""
    part = Part("Training")
    if len({run.method for run in runs}) > 1:
        part.lines.append("Training losses of different methods do not compare; held-out losses on the same rows do.")
    compared(part, runs, "Training loss", lambda run: run.column("loss"), style=BAND)
    part.lines.append("Losses by component and by level are in nats a learned token, unweighted.")
    components = {name: of_component(name) for name in COMPONENTS}
    divided(part, runs, "Loss by component", components, "", "its version did not measure it, or no such document came")
    bands = {name: in_band(band) for name, band in BANDS.items()}
    divided(part, runs, "Loss by level", bands)
    chosen = [run for run in runs if np.isfinite(run.column("component_share", "easy")).any()]
    if chosen:
        means = {
            name: np.array([mean_of(run.column("component_share", name)) for run in chosen]) for name in COMPONENTS
        }
        caption = "Mean over all steps: which tokens of a document's superset are learned."
        labels = [run.label for run in chosen]
        part.figures.append(plot_parts("Documents by component", labels, means, "share of documents", caption))
    part.lack("components", [run.label for run in runs if run not in chosen], len(runs))
    compared(part, runs, "Learning rate", lambda run: run.column("lr"), style=FROM_ZERO)
    compared(part, runs, "Gradient norm", lambda run: run.column("grad_norm"), style=Style(is_log=True, has_band=True))
    worth = "Tokens of equal weight that would average as well, over learned tokens: weights 1/t make it less than 1."
    compared(
        part, runs, "Worth of a learned token", share("effective_num_learned", "num_learned"), worth, style=FROM_ZERO
    )
    scored = [run for run in runs if np.isfinite(run.column("scoring_agreement")).any()]
    if scored:
        caption = "Share of tokens that the difficulty table and exact scores both choose, where both are known."
        compared(
            part, scored, "Scoring agreement", lambda run: run.column("scoring_agreement"), caption, style=FROM_ZERO
        )
    with_experts = [run for run in runs if np.isfinite(run.column("expert_load")).any()]
    if with_experts:
        caption = (
            "The busiest expert of a layer over the layer's mean, of the response's tokens: 1 where loads are even."
        )
        compared(part, with_experts, "Load of experts", lambda run: run.column("expert_load"), caption)
    return part


def heldout_part(runs: Sequence[ReportedRun]) -> Part:
    """Held-out losses over steps, and by level and frequency before and after; runs of other rows stand apart."""
    part = Part("Held-out loss", ["Cross-entropy in nats a masked token, on fixed rows, levels and masks."])
    measured = [run for run in runs if run.heldout]
    part.lack(
        "held-out loss", [run.label for run in runs if not run.heldout], len(runs), "eval.rows=0, or none was reached"
    )
    groups: dict[str, list[ReportedRun]] = {}
    for run in measured:
        groups.setdefault(run.heldout_rows, []).append(run)
    if len(groups) > 1:
        apart = "; ".join(", ".join(run.label for run in group) for group in groups.values())
        part.lines.append(f"Losses on different rows do not compare. The same rows have: {apart}.")
    for group in groups.values():
        where = f" on {group[0].task}" if len(groups) > 1 else ""
        curves = [(run.key, points_of(run.heldout, "mean")) for run in group]
        part.figures.append(plot_lines(f"Held-out loss{where}", curves))
        part.figures += before_and_after(group, where)
    return part


def points_of(records: Sequence[dict[str, Any]], name: str) -> Points:
    """A number of measurements as a curve over their steps."""
    return points(column(records, "step"), column(records, name))


def before_and_after(runs: Sequence[ReportedRun], where: str) -> list[Figure]:
    """The first and the last held-out loss, by level and by how often a token occurs."""
    figures = []
    for name, title, label in (
        ("by_level", "Held-out loss by level", "share masked, t"),
        ("by_frequency", "Held-out loss by frequency", "occurrences of the token"),
    ):
        sides = [(run.key, run.heldout[0].get(name) or [], run.heldout[-1].get(name) or []) for run in runs]
        if not any(after for _, _, after in sides):
            continue
        longest = max(len(after) for _, _, after in sides)
        levels = runs[0].heldout[0].get("levels") or []
        ticks = [f"{level:g}" for level in levels] if name == "by_level" else [class_label(i) for i in range(longest)]
        caption = "Dashed: first measurement. Solid: last."
        figures.append(plot_pairs(f"{title}{where}", sides, ticks, caption, label))
    return figures
