"""Which training rows stay hard: what a run's difficulty memory says of them, for cleaning data with any method.

A token's residual is how many nats harder it was than such tokens are at such levels, see `method.memory`. A row's
hardness is the mean of its response tokens' residuals, each shrunk by how few observations it rests on, and that of the
row by how few tokens: where to look for wrong answers, noise and rare kinds of rows. A row is forgotten where it was
easier in an earlier checkpoint.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from lift_ds.data.batch import Document
from lift_ds.method.memory import BLOCK_ROWS, Records, RowMemory

from .page_frame import render

FEW_TOKENS = 2.0  # of no residual, that every row's mean is taken with
NUM_SHOWN = 50
NUM_MARKED = 4
ROWS_FILE = "hardest_rows.json"
PAGE = """{% extends "frame.html" %}{% from "rows.html" import rows_table %}{% block body %}
<h1>{{ title }}</h1>
<p>{{ num_rows }} rows were seen. Hardness: mean nats beyond what such tokens cost at such levels. The hardest tokens of
each answer are marked.</p>
{% for section in sections %}<h2>{{ section.heading }}</h2>
{{ rows_table(section.rows) }}
{% endfor %}
{% endblock %}
"""


@dataclass(frozen=True)
class RowHardness:
    """One row.

    Args:
        sample_id: Its number in the data.
        hardness: Mean residual in nats.
        num_seen: Response tokens that were observed.
        size: Response tokens.
        hardest: Places of its hardest tokens, the hardest first.
    """

    sample_id: int
    hardness: float
    num_seen: int
    size: int
    hardest: tuple[int, ...]


def rank_rows(memory: RowMemory) -> list[RowHardness]:
    """All rows that were seen, the hardest first."""
    found = []
    for number, sizes, packed in memory.state():
        ends = np.cumsum(sizes)
        for index in sizes.nonzero()[0].tolist():
            records = Records.unpacked(packed[ends[index] - sizes[index] : ends[index]])
            num_seen = int((records.counts > 0).sum())
            hardness = float(records.trusted.sum()) / (num_seen + FEW_TOKENS)
            hardest = tuple(np.argsort(-records.trusted, kind="stable")[:NUM_MARKED].tolist())
            found.append(RowHardness(number * BLOCK_ROWS + index, hardness, num_seen, int(sizes[index]), hardest))
    return sorted(found, key=lambda row: (-row.hardness, row.sample_id))


def forgotten(rows: Sequence[RowHardness], earlier: dict[int, float]) -> list[RowHardness]:
    """Rows that became harder than they were, by sample id, the largest rise first."""
    risen = [row for row in rows if row.hardness > earlier.get(row.sample_id, np.inf)]
    return sorted(risen, key=lambda row: earlier[row.sample_id] - row.hardness)


@dataclass(frozen=True)
class _Shown:
    where: str
    hardness: float
    before: float | None
    question: str
    answer: list[tuple[str, bool]]


def _show(
    row: RowHardness, before: float | None, document: Document | None, tokenizer: PreTrainedTokenizerBase
) -> _Shown:
    if document is None:  # it is skipped, now that it is read again
        return _Shown(f"row {row.sample_id}", row.hardness, before, "", [])
    learnable = document.response_mask & ~document.filler_mask
    places = np.cumsum(learnable) - 1
    question = str(tokenizer.decode(document.ids[: int(learnable.argmax())], skip_special_tokens=True))
    answer = [
        (str(tokenizer.decode([token])), place in row.hardest)
        for token, place in zip(document.ids[learnable].tolist(), places[learnable].tolist(), strict=True)
    ]
    return _Shown(document.where, row.hardness, before, question, answer)


def write_hardest(
    folder: Path,
    title: str,
    rows: Sequence[RowHardness],
    earlier: dict[int, float],
    documents: dict[int, Document],
    places: dict[int, str],
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Writes `hardest_rows.csv`, all rows, and with their text those on top: `hardest_rows.html`; for reports, `.json`.

    Args:
        folder: Where to.
        title: Of the page.
        rows: From `rank_rows`.
        earlier: Hardness in an earlier checkpoint, by sample id; may be empty.
        documents: At least those of the first `NUM_SHOWN` of these, and of those that are `forgotten`, by sample id.
        places: File and line of every row, by sample id.
        tokenizer: What reads them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "hardest_rows.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["row", "hardness", "hardness_before", "tokens_seen", "tokens", "where"])
        for row in rows:
            before = earlier.get(row.sample_id, "")
            writer.writerow([row.sample_id, row.hardness, before, row.num_seen, row.size, places[row.sample_id]])

    sections = [
        {
            "heading": heading,
            "rows": [
                asdict(_show(row, before.get(row.sample_id), documents.get(row.sample_id), tokenizer)) for row in listed
            ],
        }
        for heading, listed, before in (
            ("Hardest rows", rows[:NUM_SHOWN], {}),
            ("Most forgotten rows", forgotten(rows, earlier)[:NUM_SHOWN], earlier),
        )
        if listed
    ]
    shown = {"num_rows": len(rows), "sections": sections}
    (folder / ROWS_FILE).write_text(json.dumps(shown) + "\n", encoding="utf-8")
    (folder / "hardest_rows.html").write_text(render(PAGE, title, **shown), encoding="utf-8")
