"""Plots for a page: matplotlib draws them, and the page's own colours and fonts are put in, which follow its theme.

A plot is drawn in stand-in colours. In its SVG each becomes a variable of the page's styles, so that one plot suits
light and dark screens and paper; text stays text. Sizes are those of a phone's width; a page sets plots side by side
where it has room.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from markupsafe import Markup
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from .series import Points

WIDTH, HEIGHT = 4.7, 2.7  # inches: of 338 points, about what a phone shows
NUM_COLORS = 8
INK, SOFT, LINE, PAPER = "#010101", "#010102", "#010103", "#010104"  # stand for what is named in `VARIABLES`
RUN_COLORS = [f"#0102{number:02x}" for number in range(NUM_COLORS)]
VARIABLES = {INK: "--ink", SOFT: "--soft", LINE: "--line", PAPER: "--paper"} | {
    color: f"--run-{number}" for number, color in enumerate(RUN_COLORS)
}
DASHES: tuple[str | tuple[int, tuple[float, ...]], ...] = ("-", (0, (4, 1.6)), (0, (1, 1.2)), (0, (5, 1.2, 1, 1.2)))
STYLE: Any = {
    "svg.fonttype": "none",  # text as text, which the page's font sets
    "svg.hashsalt": "lift_ds",
    "text.parse_math": False,
    "font.size": 9,
    "axes.titlesize": 9,
    "text.color": INK,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": LINE,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": SOFT,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "axes.grid": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.5,
}
DROPPED = re.compile(
    r"<\?xml.*?\?>|<!DOCTYPE.*?>|<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->| xmlns(:xlink)?=\"[^\"]*\""
    r"|(?<=<g) id=\"[^\"]*\"",
    re.DOTALL,
)
FONT = re.compile(r"font: [^;\"]*?(\d[\d.]*px)[^;\"]*|font-family:[^;\"]*;? ?")
PLACES = re.compile(r' (d|x|y)="([^"]*)"')
DECIMALS = re.compile(r"(\.\d\d)\d+")


@dataclass(frozen=True)
class Key:
    """What a line of a plot is, as a legend names it.

    Args:
        label: Its name.
        color: Number of its colour.
        dash: Number of its dashes; runs of one task have the same.
    """

    label: str
    color: int = 0
    dash: int = 0

    @property
    def stand_in(self) -> str:
        """The colour that it is drawn in."""
        return RUN_COLORS[self.color % NUM_COLORS]

    @property
    def style(self) -> str | tuple[int, tuple[float, ...]]:
        """Its dashes, as matplotlib takes them."""
        return DASHES[self.dash % len(DASHES)]

    @property
    def css_color(self) -> int:
        """The number of the page's variable."""
        return self.color % NUM_COLORS

    @property
    def css_dash(self) -> int:
        """The number of the page's border."""
        return self.dash % len(DASHES)


@dataclass(frozen=True)
class Figure:
    """A plot with what stands around it; `keys` are its legend."""

    title: str
    svg: Markup
    caption: str = ""
    keys: list[Key] = field(default_factory=list)


@contextmanager
def drawing(width: float = WIDTH, height: float = HEIGHT) -> Iterator[tuple[Any, Any]]:
    """A figure and its axes in the stand-in colours; it is closed behind the block."""
    with plt.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # the page's font has it
        figure, axis = plt.subplots(figsize=(width, height), layout="constrained")
        try:
            yield figure, axis
        finally:
            plt.close(figure)


def svg_of(figure: Any, name: str, variables: dict[str, str] = VARIABLES) -> Markup:
    """A figure for a page, by the name that is read out, with its colours as variables."""
    written = io.StringIO()
    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": "lift_ds"}):
        figure.savefig(written, format="svg", metadata={"Date": None})
    text = FONT.sub(lambda match: f"font-size: {match[1]}" if match[1] else "", DROPPED.sub("", written.getvalue()))
    text = PLACES.sub(lambda match: f' {match[1]}="{DECIMALS.sub(chr(92) + "1", " ".join(match[2].split()))}"', text)
    text = re.sub(r"\s*\n\s*", "\n", text).strip()
    for color, variable in variables.items():
        text = text.replace(color, f"var({variable})")
    attributes = Markup('<svg class="plot" role="img" aria-label="{}"').format(name)  # escapes the name
    return Markup(re.sub(r"<svg\b", lambda _: attributes, text, count=1))


@dataclass(frozen=True)
class Style:
    """How curves are drawn: on a logarithmic axis where all are positive, with a band, with 0 at the bottom."""

    is_log: bool = False
    has_band: bool = False
    from_zero: bool = False


PLAIN, FROM_ZERO, BAND = Style(), Style(from_zero=True), Style(has_band=True)


def plot_lines(
    title: str,
    curves: Sequence[tuple[Key, Points]],
    caption: str = "",
    x_label: str = "step",
    style: Style = PLAIN,
) -> Figure:
    """Curves over steps. A band is from the least to the most of the steps that a point stands for."""
    with drawing() as (figure, axis):
        for place, (key, curve) in enumerate(curves, start=1):
            marker = "o" if len(curve.steps) <= 12 else None
            looks = {"color": key.stand_in, "linestyle": key.style, "marker": marker, "markersize": 3.5}
            width = 1.3 + 1.1 * (1 - place / len(curves))  # so that one is seen below another that is the same
            axis.plot(curve.steps, curve.mean, linewidth=width, **looks)
            if style.has_band and curve.most_each > 1:
                axis.fill_between(curve.steps, curve.low, curve.high, color=key.stand_in, alpha=0.18, linewidth=0)
        axis.set_xlabel(x_label)
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        if len(places := np.unique(np.concatenate([curve.steps for _, curve in curves]))) == 1:
            axis.set_xticks(places)
        if style.is_log and all(np.all(curve.mean > 0) for _, curve in curves):
            axis.set_yscale("log")
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axis.yaxis.set_minor_formatter(NullFormatter())
        elif style.from_zero:
            begin_at_zero(axis)
        axis.margins(x=0.02)
        most = max((curve.most_each for _, curve in curves), default=0)
        said = f"Each point is the mean of up to {most:,} recorded steps{', the band their range' * style.has_band}."
        words = [caption, said if most > 1 else ""]
        svg = svg_of(figure, title)
    keys = [key for key, _ in curves]
    return Figure(title, svg, " ".join(filter(None, words)), keys)


def plot_parts(title: str, labels: Sequence[str], parts: dict[str, np.ndarray], x_label: str, caption: str) -> Figure:
    """A bar for each label, of parts (labels,) laid end to end."""
    keys = [Key(name, number) for number, name in enumerate(parts)]
    with drawing(WIDTH, 1.0 + 0.34 * len(labels)) as (figure, axis):
        left = np.zeros(len(labels))
        for key, values in zip(keys, parts.values(), strict=True):
            axis.barh(range(len(labels)), values, 0.62, left=left, color=key.stand_in, edgecolor=PAPER, linewidth=0.8)
            left = left + values
        axis.set(ylim=(len(labels) - 0.5, -0.5), xlabel=x_label)
        name_rows(axis, labels)
        svg = svg_of(figure, title)
    return Figure(title, svg, caption, keys)


@dataclass(frozen=True)
class Shares:
    """Shares of solved items in the rows of a plot, with how sure they are; `None` where a row has none.

    Args:
        key: Whose they are.
        after: Share and interval of each row.
        before: Share of each row before training; empty where that was not measured.
    """

    key: Key
    after: Sequence[tuple[float, float, float] | None]
    before: Sequence[float | None] = ()


def plot_shares(title: str, labels: Sequence[str], sides: Sequence[Shares], caption: str) -> Figure:
    """A row for each label, in it a dot with its interval for each key, and a ring for what was before."""
    step = 0.64 / max(len(sides), 1)
    with drawing(WIDTH, 0.9 + (0.2 + 0.05 * (len(sides) - 1)) * len(labels)) as (figure, axis):
        for number, side in enumerate(sides):
            offset = (number - (len(sides) - 1) / 2) * step
            color = side.key.stand_in
            for row, before in enumerate(side.before):
                if before is not None:
                    axis.plot(100 * before, row + offset, "o", markersize=4, markerfacecolor="none", color=color)
            for row, after in enumerate(side.after):
                if after is not None:
                    share, low, high = (100 * value for value in after)
                    axis.hlines(row + offset, low, high, color=color, linewidth=1.2)
                    axis.plot(share, row + offset, "o", markersize=4, color=color)
        axis.set(xlim=(-2, 102), ylim=(len(labels) - 0.4, -0.6), xlabel="solved, %")
        name_rows(axis, labels)
        svg = svg_of(figure, title)
    keys = [Key(side.key.label, side.key.color) for side in sides]
    return Figure(title, svg, caption, keys)


def begin_at_zero(axis: Any) -> None:
    """Puts 0 at the bottom, with room above the highest point."""
    axis.set_ylim(0, 1.06 * axis.dataLim.y1 if axis.dataLim.y1 > 0 else 1)


def name_rows(axis: Any, labels: Sequence[str]) -> None:
    """Writes the names of rows beside them."""
    axis.set_yticks(range(len(labels)), [short(label) for label in labels])
    axis.grid(axis="y", visible=False)
    axis.tick_params(axis="y", length=0, labelcolor=INK)


def short(label: str, longest: int = 22) -> str:
    """A label cut in its middle where a plot has no room for it."""
    half = longest // 2 - 1
    return label if len(label) <= longest else f"{label[:half]}…{label[-half:]}"


def plot_pairs(
    title: str,
    sides: Sequence[tuple[Key, Sequence[float], Sequence[float]]],
    ticks: Sequence[str],
    caption: str,
    x_label: str,
) -> Figure:
    """Two lines of each run over named places: before, dashed, and after."""
    with drawing() as (figure, axis):
        for key, before, after in sides:
            for values, style, alpha in ((before, (0, (3, 2)), 0.65), (after, "-", 1.0)):
                numbers = [np.nan if value is None else value for value in values]
                axis.plot(
                    range(len(numbers)),
                    numbers,
                    linestyle=style,
                    alpha=alpha,
                    marker="o",
                    markersize=3,
                    color=key.stand_in,
                )
        axis.set_xticks(range(len(ticks)), ticks)
        axis.set(xlabel=x_label)
        begin_at_zero(axis)
        svg = svg_of(figure, title)
    keys = [key for key, _, _ in sides]
    return Figure(title, svg, caption, [Key(key.label, key.color) for key in keys])
