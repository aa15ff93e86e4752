"""The report of a data set on a terminal, or as plain text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from lift_ds.data.text.chat import Tokens

from .rows import counted

SHOWN_PROBLEMS = 20
SHOWN_TOKENS = 600
SHOWN_BORDERS, BORDER_TOKENS = 12, 3  # the latter on each side
BAR_WIDTH = 40
TARGET_STYLE, FILLER_STYLE, PROMPT_STYLE = "bold green", "dim green", ""


def show_report(
    console: Console, numbers: dict[str, Any], first_rows: list[list[Tokens]], tokenizer: PreTrainedTokenizerBase
) -> None:
    """Prints the numbers of a `SurveyReport`, with `locations` among its duplicates, and the first good rows."""
    for source, documents in zip(numbers["sources"], first_rows, strict=True):
        for number, document in enumerate(documents, start=1):
            show_row(console, f"good row {number} of {source['name']}", document, tokenizer)
    for problem in numbers["problems"][:SHOWN_PROBLEMS]:
        style = "yellow" if problem["kind"] == "long" else "red"
        _say(console, problem["problem"], style)
    hidden = len(numbers["problems"]) - SHOWN_PROBLEMS
    if hidden > 0:
        console.print(f"... and {hidden:,} more (all of them are in the file of --json)")
    _show_numbers(console, numbers)
    if numbers["lengths"]["row"]:
        console.print(_lengths_table(numbers["lengths"]))
        console.print(_histogram_of(numbers["lengths"]["row"]["histogram"]))


def _say(console: Console, line: str, style: str = "") -> None:
    console.print(Text(_printable(line), style=style), soft_wrap=True)


def _show_numbers(console: Console, numbers: dict[str, Any]) -> None:
    rows, tokens, coverage = numbers["rows"], numbers["tokens"], numbers["coverage"]
    lines = [f"rows: {rows['all']:,}: {rows['good']:,} good, {rows['bad']:,} bad, {rows['too_long']:,} too long"]
    if len(numbers["sources"]) > 1:
        lines += [
            f"  {source['name']}: {source['good']:,} good, {source['bad']:,} bad, {source['too_long']:,} too long"
            for source in numbers["sources"]
        ]
    lines += [
        f"not used of {source['name']}: {counted(Counter(source['unused']))}"
        for source in numbers["sources"]
        if source["unused"]
    ]
    lines.append(f"tokens: {tokens['all']:,}, targets {tokens['targets']:,} ({tokens['target_share']:.1%})")
    shares = ", ".join(
        f"{count:,} make {float(share):.0%}" for share, count in coverage["ids_for_target_share"].items()
    )
    lines.append(
        f"token ids: {coverage['used']:,} of {coverage['ids']:,} used, {coverage['used_in_targets']:,} in targets "
        f"({shares} of them)"
    )
    duplicates = numbers["duplicates"]
    lines.append(f"duplicates: {duplicates['groups']:,} groups, {duplicates['surplus_rows']:,} surplus rows")
    lines += [f"  {', '.join(group)}" for group in duplicates["locations"]]
    padding, packing = numbers["padding"], numbers["packing"]
    rows, most = padding["micro_batch"], padding["micro_batch_tokens"]
    limit = f"{most:,} tokens" if rows is None else str(rows)
    lines.append(
        f"data.packing=none: {padding['waste']:.1%} padding in micro-batches of {limit} "
        f"(steps of {padding['global_batch']} rows)"
    )
    lines.append(
        f"data.packing=best_fit: {packing['packs']:,} packs of at most {packing['pack_length']:,} tokens, "
        f"{packing['fill']:.1%} full"
    )
    for line in lines:
        _say(console, line)


def _lengths_table(lengths: dict[str, dict[str, Any]]) -> Table:
    table = Table(title="length in tokens", title_justify="left")
    table.add_column("")
    percentiles = list(lengths["row"]["percentiles"])
    for name in ("min", *(f"{percentile} %" for percentile in percentiles), "max", "mean"):
        table.add_column(name, justify="right")
    for name, summary in lengths.items():
        numbers = [summary["min"], *summary["percentiles"].values(), summary["max"], round(summary["mean"], 1)]
        table.add_row(name, *(f"{number:,}" for number in numbers))
    return table


def _histogram_of(counts: dict[str, int]) -> Table:
    table = Table(title="rows by length", title_justify="left", show_header=False, box=None)
    exponents = [int(exponent) for exponent in counts]
    most = max(counts.values())
    for exponent in range(min(exponents), max(exponents) + 1):
        count = counts.get(str(exponent), 0)
        low, high = 2**exponent, 2 ** (exponent + 1) - 1
        bar = "█" * -(-count * BAR_WIDTH // most)
        table.add_row(f"{low:,}-{high:,}" if high > low else "0-1", Text(bar, style="cyan"), f"{count:,}")
    return table


def show_row(console: Console, title: str, document: Tokens, tokenizer: PreTrainedTokenizerBase) -> None:
    """A row as text, special tokens included, and the ids at its beginning, its end and where targets begin or end.

    Targets are green on a terminal, and stand between « and » elsewhere.
    """
    marks = "in green" if console.is_terminal else "between « and »"
    _say(console, f"{title}, {len(document.ids):,} tokens, targets {marks}:", "bold")
    text, start = Text(), 0
    for piece, is_target, is_filler, end in _decoded_runs(document, tokenizer):
        if start >= SHOWN_TOKENS:
            text.append(f"... {len(document.ids) - start:,} more tokens", style="dim")
            break
        style = FILLER_STYLE if is_filler else TARGET_STYLE
        if console.is_terminal:
            text.append(_printable(piece), style=style if is_target else PROMPT_STYLE)
        else:
            text.append(_printable(f"«{piece}»" if is_target else piece))
        start = end
    console.print(text, soft_wrap=True)
    for line in _border_lines(document, tokenizer):
        _say(console, line, "dim")


def _border_lines(document: Tokens, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """The ids around every border of a row, each with its text: where it begins and ends, and where targets do."""
    borders = [0, *(end for _, _, _, end in _decoded_runs(document, tokenizer))]
    for border in borders[:SHOWN_BORDERS]:
        around = range(max(border - BORDER_TOKENS, 0), min(border + BORDER_TOKENS, len(document.ids)))
        parts = ["|"] if border == 0 else []
        for place in around:
            token_id = int(document.ids[place])
            parts.append(f"{token_id} {str(tokenizer.decode([token_id]))!r}")
            parts += ["|"] * (place + 1 == border)
        yield f"  token {border:,}: {' '.join(parts)}"
    if len(borders) > SHOWN_BORDERS:
        yield f"  ... {len(borders) - SHOWN_BORDERS} more borders"


def _printable(text: str) -> str:
    """A text of the data without what a terminal would obey, or could not encode."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return "".join(
        character if character in "\n\t" or character.isprintable() else f"\\x{ord(character):02x}"
        for character in text
    )


def marked_text(document: Tokens, tokenizer: PreTrainedTokenizerBase) -> str:
    """A whole row as text, special tokens included, with targets between « and »."""
    pieces = _decoded_runs(document, tokenizer)
    return "".join(f"«{piece}»" if is_target else piece for piece, is_target, _, _ in pieces)


def _decoded_runs(document: Tokens, tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[str, bool, bool, int]]:
    """(text, target, filler, end) of every stretch of a row with equal masks."""
    kinds = document.response_mask.astype(np.int8) + document.filler_mask
    borders = [0, *(np.flatnonzero(np.diff(kinds)) + 1).tolist(), len(kinds)]
    for start, end in pairwise(borders):
        text = str(tokenizer.decode(document.ids[start:end].tolist(), skip_special_tokens=False))
        yield text, bool(document.response_mask[start]), bool(document.filler_mask[start]), end
