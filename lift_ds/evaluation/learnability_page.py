"""The learnability report: a CSV, a picture, and one self-contained HTML page."""

from __future__ import annotations

import base64
import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from transformers import PreTrainedTokenizerBase

from .heldout import class_label
from .learnability import Cell, Learnability
from .page_frame import render

NUM_GAINED = 25
FEW_LEVELS = 10
PAGE = """{% extends "frame.html" %}{% block body %}
<h1>{{ title }}</h1>
<p>How surely masked tokens are predicted, by how often they occur and how much is masked.</p>
<img alt="heat maps and curves" src="data:image/png;base64,{{ picture }}">
{% if gained is not none %}
<h2>Tokens that gained most</h2>
<div class="scroll" tabindex="0"><table>
<thead><tr><th>token</th><th>occurrences</th><th>p(gold) before</th><th>after</th></tr></thead>
{% for row in gained %}
<tr><td><code>{{ row[0] }}</code></td>{% for cell in row[1:] %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</table></div>
{% endif %}
{% endblock %}
"""


def _write_csv(path: Path, measured: dict[str, Learnability]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["model", "token_count", "t", "num_tokens", "mean_confidence", "mean_p_gold", "interval_95"])
        for label, learnability in measured.items():
            for frequency_class, cells in learnability.cells().items():
                for level, cell in zip(learnability.levels, cells, strict=True):
                    row = (cell.num_tokens, cell.confidence, cell.gold, cell.interval)
                    writer.writerow([label, class_label(frequency_class), level, *row])


def draw(measured: dict[str, Learnability]) -> Any:
    """Heat maps of p(gold) by frequency and level, one a model, and below them the curves of common and rare tokens."""
    size = (6.2 * len(measured), 9)
    figure, axes = plt.subplots(2, len(measured), figsize=size, squeeze=False, sharey="row", layout="constrained")
    classes = sorted(set().union(*(learnability.cells() for learnability in measured.values())))
    for (label, learnability), column in zip(measured.items(), axes.T, strict=True):
        cells, levels = learnability.cells(), learnability.levels
        image = draw_map(column[0], gold_grid(cells, classes, len(levels)), levels, list(map(class_label, classes)))
        column[0].set(title=f"{label}: mean p(gold)")
        draw_curves(column[1], cells, levels)
    axes[0, 0].set_ylabel("occurrences of the token")
    axes[1, 0].set_ylabel("mean over masked tokens")
    figure.colorbar(image, ax=axes[0, :], label="mean p(gold)", shrink=0.8)
    return figure


def gold_grid(cells: dict[int, list[Cell]], classes: Sequence[int], num_levels: int) -> np.ndarray:
    """Mean p(gold) of each class at each level (classes, levels); NaN where nothing was masked."""
    unseen = [Cell(0, np.nan, np.nan, np.nan)] * num_levels
    return np.array([[cell.gold for cell in cells.get(number, unseen)] for number in classes])


def draw_map(axis: Any, grid: np.ndarray, levels: Sequence[float], names: Sequence[str]) -> Any:
    """A heat map of mean p(gold) (classes, levels), with its figures in it; rows by the names of their classes."""
    image = axis.pcolormesh(grid, vmin=0, vmax=1, cmap="viridis")
    is_fine = len(levels) > FEW_LEVELS
    ticks = range(0, len(levels), 2 if is_fine else 1)
    axis.set_xticks([tick + 0.5 for tick in ticks], [f"{levels[index]:.2f}" for index in ticks])
    axis.set_yticks([row + 0.5 for row in range(len(names))], names)
    axis.set_xlabel("share masked, t")
    axis.grid(visible=False)
    for (y, x), value in np.ndenumerate(grid):
        if np.isfinite(value):
            style = {"color": "black" if value > 0.6 else "white", "fontsize": 5.5 if is_fine else 8}
            axis.text(x + 0.5, y + 0.5, f"{value:.2f}", ha="center", va="center", **style)
    return image


def draw_curves(axis: Any, cells: dict[int, list[Cell]], levels: tuple[float, ...]) -> None:
    """p(gold) with its interval, and confidence dashed, of the rarest, middle and most common tokens."""
    classes = list(cells)
    for number in sorted({classes[0], classes[len(classes) // 2], classes[-1]}):
        label = "once" if number == 0 else f"{class_label(number)} times"
        gold, confidence, interval = (
            np.array([getattr(cell, name) for cell in cells[number]]) for name in ("gold", "confidence", "interval")
        )
        (line,) = axis.plot(levels, gold, marker="o", label=label)
        axis.fill_between(levels, gold - interval, gold + interval, alpha=0.2, color=line.get_color())
        axis.plot(levels, confidence, linestyle="--", color=line.get_color())
    axis.set(xlabel="share masked, t", ylim=(0, 1.02), title=curves_title(cells))
    axis.legend(title="tokens that occur", loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3)


def curves_title(cells: dict[int, list[Cell]]) -> str:
    """What the curves are, by what is known: a difficulty table has neither intervals nor confidences."""
    known = [cell for row in cells.values() for cell in row]
    interval = " with 95 % interval" if any(math.isfinite(cell.interval) for cell in known) else ""
    confidence = ", confidence dashed" if any(math.isfinite(cell.confidence) for cell in known) else ""
    return f"p(gold){interval}{confidence}"


def gained(measured: dict[str, Learnability], tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, ...]]:
    """The tokens whose mean p(gold) rose most from the first model to the second: text, occurrences, before, after."""
    before, after = measured.values()
    first, second = before.token_gold(), after.token_gold()
    gain = (second - first).nan_to_num(-1.0)
    gain[before.frequency < 5] = -1.0
    order = gain.argsort(descending=True)[:NUM_GAINED].tolist()
    return [
        (repr(tokenizer.decode([token])), f"{before.frequency[token]}", f"{first[token]:.3f}", f"{second[token]:.3f}")
        for token in order
        if gain[token] > 0
    ]


def write_report(folder: Path, measured: dict[str, Learnability], tokenizer: PreTrainedTokenizerBase) -> None:
    """Writes `learnability.csv`, `.png` and `.html` of models by label, the second of two compared with the first."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_csv(folder / "learnability.csv", measured)
    figure = draw(measured)
    figure.savefig(folder / "learnability.png", dpi=110)
    plt.close(figure)
    picture = base64.b64encode((folder / "learnability.png").read_bytes()).decode()
    rows = gained(measured, tokenizer) if len(measured) == 2 else None
    page = render(PAGE, f"Learnability: {' and '.join(measured)}", picture=picture, gained=rows)
    (folder / "learnability.html").write_text(page, encoding="utf-8")
