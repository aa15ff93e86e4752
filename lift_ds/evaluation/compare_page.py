"""A comparison as one self-contained HTML page: the figures, and side by side the answers that flipped."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from typing import Any

from .compare import Flip, TaskComparison

STYLE = (
    "body{font:15px/1.5 system-ui;margin:2rem auto;max-width:80rem;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse}td,th{padding:.25rem .9rem;text-align:right;border-bottom:1px solid #ddd}"
    "td:first-child,th:first-child{text-align:left}"
    "details{margin:.8rem 0;border:1px solid #ddd;border-radius:6px;padding:.4rem .9rem}summary{cursor:pointer}"
    ".pair{display:grid;grid-template-columns:1fr 1fr;gap:1rem}"
    "pre{white-space:pre-wrap;overflow-wrap:anywhere;background:#f7f7f7;padding:.7rem;margin:.3rem 0;max-height:30rem;"
    "overflow:auto}.right{background:#e9f7ec}.wrong{background:#fdeeee}"
)
LONGEST = 20_000
"""Characters of a text that the page shows."""


def comparison_page(labels: tuple[str, str], comparisons: Sequence[TaskComparison]) -> str:
    """The page.

    Args:
        labels: What to call the two models.
        comparisons: Their tasks.
    """
    first, second = map(html.escape, labels)
    heading = (
        "<tr><th>task<th>scorer<th>problems"
        f"<th>{first}<th>{second}<th>difference<th>95 % interval<th>only {first}<th>only {second}<th>McNemar p</tr>"
    )
    rows = "".join(figures_row(comparison) for comparison in comparisons)
    sections = "".join(flips_section(comparison, (first, second)) for comparison in comparisons)
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        f"<title>{first} and {second}</title><style>{STYLE}</style>"
        f"<h1>{first} and {second}</h1><table>{heading}{rows}</table>{sections}</html>\n"
    )


def figures_row(comparison: TaskComparison) -> str:
    """A task's row of the table."""
    cells = [
        html.escape(comparison.task),
        comparison.scorer,
        f"{comparison.num_problems:,}",
        f"{comparison.solved[0]:.1%}",
        f"{comparison.solved[1]:.1%}",
        f"{comparison.difference.mean:+.1%}",
        f"{comparison.difference.low:+.1%} to {comparison.difference.high:+.1%}",
        str(comparison.only_first),
        str(comparison.only_second),
        "" if comparison.p_value is None else f"{comparison.p_value:.3g}",
    ]
    return "<tr>" + "".join(f"<td>{cell}" for cell in cells) + "</tr>"


def flips_section(comparison: TaskComparison, labels: tuple[str, str]) -> str:
    """The problems of a task on which the models differ."""
    flips = "".join(flip_details(flip, labels) for flip in comparison.flips)
    return (
        f"<h2>{html.escape(comparison.task)}: {len(comparison.flips)} of {comparison.num_problems} flipped</h2>{flips}"
    )


def flip_details(flip: Flip, labels: tuple[str, str]) -> str:
    """One problem with both answers."""
    better = labels[0] if flip.solved[0] > flip.solved[1] else labels[1]
    columns = zip(labels, flip.solved, flip.generations, strict=True)
    answers = "".join(
        f"<div><b>{label}: {share:.0%} right</b>"
        f"<pre class={'right' if share > 0 else 'wrong'}>{escaped(text)}</pre></div>"
        for label, share, text in columns
    )
    return (
        f"<details><summary>{better} &nbsp; {escaped(flip.question[:160])}</summary>"
        f"<pre>{escaped(flip.question)}</pre><p>right: <code>{escaped(truth_text(flip.ground_truth))}</code> "
        f"({html.escape(flip.where)})</p><div class=pair>{answers}</div></details>"
    )


def escaped(text: str) -> str:
    """A text for the page, cut where it is very long."""
    return html.escape(text if len(text) <= LONGEST else f"{text[:LONGEST]} … ({len(text):,} characters)")


def truth_text(truth: Any) -> str:
    """A ground truth as text."""
    return truth if isinstance(truth, str) else json.dumps(truth)
