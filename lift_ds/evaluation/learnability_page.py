"""The learnability report: a CSV, a picture, and one self-contained HTML page."""

from __future__ import annotations

import base64
import csv
import html
import math
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from transformers import PreTrainedTokenizerBase

from .frequency import class_label
from .learnability import Cell, Learnability

NUM_GAINED = 25
FEW_LEVELS = 10
STYLE = "body{font:15px/1.5 system-ui;margin:2rem auto;max-width:70rem}table{border-collapse:collapse}td,th{padding:.2rem .8rem;text-align:right;border-bottom:1px solid #ddd}td:first-child,th:first-child{text-align:left;font-family:monospace}img{max-width:100%}"  # noqa: E501


def write_csv(path: Path, measured: dict[str, Learnability]) -> None:
    """One line a model, frequency class and level."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["model", "token_count", "t", "num_tokens", "mean_confidence", "mean_p_gold", "interval_95"])
        for label, learnability in measured.items():
            for each, cells in learnability.cells().items():
                for level, cell in zip(learnability.levels, cells, strict=True):
                    row = (cell.num_tokens, cell.confidence, cell.gold, cell.interval)
                    writer.writerow([label, class_label(each), level, *row])


def draw(measured: dict[str, Learnability]) -> Any:
    """Heat maps of p(gold) by frequency and level, one a model, and below them the curves of common and rare tokens."""
    figure, axes = plt.subplots(
        2, len(measured), figsize=(6.2 * len(measured), 9), squeeze=False, sharey="row", layout="constrained"
    )
    classes = sorted({each for learnability in measured.values() for each in learnability.cells()})
    for (label, learnability), column in zip(measured.items(), axes.T, strict=True):
        cells, levels = learnability.cells(), learnability.levels
        unseen = [Cell(0, np.nan, np.nan, np.nan)] * len(levels)
        grid = np.array([[cell.gold for cell in cells.get(each, unseen)] for each in classes])
        image = column[0].imshow(grid, origin="lower", aspect="auto", vmin=0, vmax=1, cmap="viridis")
        column[0].set_title(f"{label}: mean p(gold)")
        is_fine = len(levels) > FEW_LEVELS
        ticks = range(0, len(levels), 2 if is_fine else 1)
        column[0].set_xticks(ticks, [f"{levels[place]:.2f}" for place in ticks])
        column[0].set_yticks(range(len(classes)), [class_label(each) for each in classes])
        column[0].set_xlabel("share masked, t")
        for (y, x), value in np.ndenumerate(grid):
            if np.isfinite(value):
                shade = "black" if value > 0.6 else "white"
                column[0].text(
                    x, y, f"{value:.2f}", ha="center", va="center", fontsize=5.5 if is_fine else 8, color=shade
                )
        draw_curves(column[1], cells, levels)
    axes[0, 0].set_ylabel("occurrences of the token")
    axes[1, 0].set_ylabel("mean over masked tokens")
    figure.colorbar(image, ax=axes[0, :], label="mean p(gold)", shrink=0.8)
    return figure


def draw_curves(axis: Any, cells: dict[int, list[Cell]], levels: tuple[float, ...]) -> None:
    """p(gold) with its interval, and confidence dashed, of the rarest, middle and most common tokens."""
    classes = list(cells)
    for each in sorted({classes[0], classes[len(classes) // 2], classes[-1]}):
        gold = [cell.gold for cell in cells[each]]
        (line,) = axis.plot(
            levels, gold, marker="o", label="once" if class_label(each) == "1" else f"{class_label(each)} times"
        )
        low = [cell.gold - cell.interval for cell in cells[each]]
        high = [cell.gold + cell.interval for cell in cells[each]]
        axis.fill_between(levels, low, high, alpha=0.2, color=line.get_color())
        axis.plot(levels, [cell.confidence for cell in cells[each]], linestyle="--", color=line.get_color())
    axis.set_xlabel("share masked, t")
    axis.set_ylim(0, 1.02)
    axis.set_title(curves_title(cells))
    axis.legend(title="tokens that occur", loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3)


def curves_title(cells: dict[int, list[Cell]]) -> str:
    """What the curves are, by what is known: a difficulty table has neither intervals nor confidences."""
    known = [cell for row in cells.values() for cell in row]
    interval = " with 95 % interval" if any(math.isfinite(cell.interval) for cell in known) else ""
    confidence = ", confidence dashed" if any(math.isfinite(cell.confidence) for cell in known) else ""
    return f"p(gold){interval}{confidence}"


def gained(before: Learnability, after: Learnability, tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, ...]]:
    """The tokens whose mean p(gold) rose most: text, occurrences, before, after."""
    first, second = before.token_gold(), after.token_gold()
    gain = (second - first).nan_to_num(-1.0)
    gain[before.frequency < 5] = -1.0
    order = gain.argsort(descending=True)[:NUM_GAINED].tolist()
    return [
        (
            repr(tokenizer.decode([token])),
            str(int(before.frequency[token])),
            f"{first[token]:.3f}",
            f"{second[token]:.3f}",
        )
        for token in order
        if gain[token] > 0
    ]


def write_report(folder: Path, measured: dict[str, Learnability], tokenizer: PreTrainedTokenizerBase) -> None:
    """Writes `learnability.csv`, `.png` and `.html`.

    Args:
        folder: Created where it is missing.
        measured: By the model's label; with two, the second is compared with the first.
        tokenizer: Turns ids into text.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(folder / "learnability.csv", measured)
    figure = draw(measured)
    figure.savefig(folder / "learnability.png", dpi=110)
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    picture = base64.b64encode(buffer.getvalue()).decode()
    body = [f"<h1>Learnability: {html.escape(' and '.join(measured))}</h1>"]
    body.append("<p>How surely masked tokens are predicted, by how often they occur and how much is masked.</p>")
    body.append(f'<img alt="heat maps and curves" src="data:image/png;base64,{picture}">')
    if len(measured) == 2:
        before, after = measured.values()
        rows = gained(before, after, tokenizer)
        cells = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
        body.append("<h2>Tokens that gained most</h2><table><tr><th>token</th><th>occurrences</th>")
        body.append(f"<th>p(gold) before</th><th>after</th></tr>{cells}</table>")
    page = f"<!doctype html><meta charset=utf-8><title>Learnability</title><style>{STYLE}</style>{''.join(body)}"
    (folder / "learnability.html").write_text(page, encoding="utf-8")
