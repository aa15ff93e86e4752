"""Curves of training: losses, what was learned, rate and gradient; of several runs in one plot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lift_ds.evaluation.heldout import class_label

from .parts import Part
from .plots import Figure, Key, plot_lines, plot_pairs
from .runs import ReportedRun
from .series import Points, banded, column, points

BANDS = {"t up to 0.3": slice(0, 3), "t from 0.3 to 0.7": slice(3, 7), "t above 0.7": slice(7, 10)}
COMPONENTS = ("easy", "random", "hard")
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
    **style: bool,
) -> None:
    """Adds a plot with a curve of each run, and says which have none."""
    curves = curves_of(runs, numbers)
    if curves:
        part.figures.append(plot_lines(title, curves, caption, **style))
    have = {key.label for key, _ in curves}
    part.lack(title.lower(), [run.label for run in runs if run.label not in have], len(runs), why)


def divided(
    part: Part, runs: Sequence[ReportedRun], title: str, columns: dict[str, Column], caption: str = "", **style: bool
) -> None:
    """Adds a plot of several numbers: of one run, in one; of several, one for each number, so that runs compare."""
    if len(runs) > 1:
        for name, numbers in columns.items():
            compared(part, runs, f"{title}, {name}", numbers, caption, **style)
        return
    (run,) = runs
    made = [
        (Key(name, index + 1), points(run.steps, numbers(run))) for index, (name, numbers) in enumerate(columns.items())
    ]
    curves = [(key, curve) for key, curve in made if len(curve.steps)]
    if curves:
        part.figures.append(plot_lines(title, curves, caption, **style))
    part.lack(title.lower(), [run.label] if not curves else [], 1)


def in_band(band: slice) -> Column:
    """The loss of learned tokens in some tenths of the levels, each tenth by its documents."""

    def loss(run: ReportedRun) -> np.ndarray:
        losses, documents = (
            np.stack([run.column(name, tenth) for tenth in range(10)], axis=1)[:, band]
            for name in ("t_token_nll", "t_documents")
        )
        return banded(losses, documents)

    return loss


def component_share(name: str) -> Column:
    """Share of a step's documents of which such tokens are learned."""
    return lambda run: run.column("component_share", name)


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
    compared(part, runs, "Training loss", lambda run: run.column("loss"), has_band=True)
    follows = all(run.folder.run.get("objective", {}).get("policy") == "time" for run in runs)
    caption = "Nats a learned token, unweighted. The metrics hold it by level, not by component"
    caption += "; in these runs the component follows from the level: hard tokens at low t, easy ones at high t."
    short = "Nats a learned token, unweighted. The metrics hold it by level, not by component."
    bands = {name: in_band(band) for name, band in BANDS.items()}
    divided(part, runs, "Loss by level", bands, caption if follows else short)
    shares: dict[str, Column] = {
        name: (lambda run, name=name: run.column("component_share", name)) for name in COMPONENTS
    }  # type: ignore[misc]
    divided(part, runs, "Share of documents", shares, "Which tokens of their supersets are learned.", from_zero=True)
    compared(part, runs, "Learning rate", lambda run: run.column("lr"), from_zero=True)
    compared(part, runs, "Gradient norm", lambda run: run.column("grad_norm"), is_log=True, has_band=True)
    worth = "Tokens of equal weight that would average as well, over learned tokens: weights 1/t make it less than 1."
    compared(
        part, runs, "Worth of a learned token", share("effective_num_learned", "num_learned"), worth, from_zero=True
    )
    scored = [run for run in runs if np.isfinite(run.column("scoring_agreement")).any()]
    if scored:
        caption = "Share of tokens that the difficulty table and exact scores both choose, where both are known."
        compared(
            part, scored, "Scoring agreement", lambda run: run.column("scoring_agreement"), caption, from_zero=True
        )
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
        ("by_level", "By level", "share masked, t"),
        ("by_frequency", "By frequency", "occurrences of the token"),
    ):
        sides = [(run.key, *(record.get(name) or [] for record in (run.heldout[0], run.heldout[-1]))) for run in runs]
        if not any(after for _, _, after in sides):
            continue
        longest = max(len(after) for _, _, after in sides)
        levels = runs[0].heldout[0].get("levels") or []
        ticks = [f"{level:g}" for level in levels] if name == "by_level" else [class_label(i) for i in range(longest)]
        caption = "Dashed: first measurement. Solid: last."
        figures.append(plot_pairs(f"{title}{where}", sides, ticks, caption, label))
    return figures
