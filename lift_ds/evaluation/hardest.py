"""Which training rows stay hard: what a run's difficulty memory says of them, for cleaning data with any method.

A token's residual is how many nats harder it was than such tokens are at such levels, see `method.memory`. A row's
hardness is the mean of its response tokens' residuals, each shrunk by how few observations it rests on, and that of the
row by how few tokens: where to look for wrong answers, noise and rare kinds of rows. A row is forgotten where it was
easier in an earlier checkpoint.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jinja2 import Template
from transformers import PreTrainedTokenizerBase

from lift_ds.data.batch import Document
from lift_ds.method.memory import BLOCK_ROWS, Records, RowMemory

FEW_TOKENS = 2.0  # of no residual, that every row's mean is taken with
NUM_SHOWN = 50
NUM_MARKED = 4
PAGE = """<!doctype html><meta charset=utf-8><title>Hardest rows</title><style>
body{font:15px/1.5 system-ui;margin:2rem auto;max-width:70rem;padding:0 1rem}table{border-collapse:collapse;width:100%}
td,th{padding:.3rem .6rem;text-align:left;border-bottom:1px solid #8884;vertical-align:top}
td.n{text-align:right;white-space:nowrap}pre{margin:0;white-space:pre-wrap;font:13px/1.4 monospace}
mark{background:#fc6a;color:inherit}small{opacity:.7}@media(prefers-color-scheme:dark){body{background:#111;color:#ddd}}
</style><h1>{{ title }}</h1>
<p>{{ num_rows }} rows were seen. Hardness: mean nats beyond what such tokens cost at such levels. The hardest tokens of
each answer are marked.</p>
{% for heading, rows in sections %}<h2>{{ heading }}</h2>
<table><tr><th>row</th><th>hardness</th>{% if rows and rows[0].before is not none %}<th>before</th>{% endif %}
<th>question and answer</th></tr>
{% for row in rows %}<tr><td><small>{{ row.where }}</small></td><td class=n>{{ "%.2f" | format(row.hardness) }}</td>
{% if row.before is not none %}<td class=n>{{ "%.2f" | format(row.before) }}</td>{% endif %}
<td><pre>{{ row.question }}</pre><pre>{% for text, is_marked in row.answer %}{% if is_marked %}<mark>{{ text }}</mark>
{%- else %}{{ text }}{% endif %}{% endfor %}</pre></td></tr>
{% endfor %}</table>
{% endfor %}"""


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
    """Writes `hardest_rows.csv`, all rows, and `hardest_rows.html`, those on top with their text.

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
        (heading, [_show(row, before.get(row.sample_id), documents.get(row.sample_id), tokenizer) for row in listed])
        for heading, listed, before in (
            ("Hardest rows", rows[:NUM_SHOWN], {}),
            ("Most forgotten rows", forgotten(rows, earlier)[:NUM_SHOWN], earlier),
        )
        if listed
    ]
    page = Template(PAGE, autoescape=True, trim_blocks=True).render(title=title, num_rows=len(rows), sections=sections)
    (folder / "hardest_rows.html").write_text(page, encoding="utf-8")
