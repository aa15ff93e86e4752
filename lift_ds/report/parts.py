"""What a report is made of: parts with a heading, and in them lines, plots and tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .plots import Figure

UNKNOWN = "\N{EN DASH}"


@dataclass(frozen=True)
class Table:
    """A table.

    Args:
        headings: Of its columns.
        rows: Cells, in texts; a row may have a mark (`sum`, `fault`) as its style.
        title: What stands above it.
        num_texts: How many of the first columns hold text; the others hold numbers.
        marks: A style of each row, empty for none.
        is_folded: Whether it is shown only when asked for.
    """

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    num_texts: int = 1
    marks: Sequence[str] = ()
    is_folded: bool = False


@dataclass(frozen=True)
class Texts:
    """Lines as they were written somewhere, shown only when asked for."""

    title: str
    lines: Sequence[str]


@dataclass
class Part:
    """A part of a report.

    Args:
        heading: Its heading.
        lines: What is said first.
        figures: Plots.
        tables: Tables.
        texts: Lines of files.
        rows: Rows of training data, as `rows.html` shows them: heading and rows.
        missing: What is not shown, and why: a line for each.
    """

    heading: str
    lines: list[str] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    texts: list[Texts] = field(default_factory=list)
    rows: list[tuple[str, list[dict[str, Any]]]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        """Whether it shows nothing."""
        return not (self.figures or self.tables or self.texts or self.rows)

    def lack(self, what: str, labels: Sequence[str], total: int, why: str = "") -> None:
        """Says what some of `total` runs do not have."""
        if labels:
            who = "" if len(labels) == total == 1 else f" of {', '.join(labels)}"
            name = what if what.isupper() else what[:1].lower() + what[1:]
            self.missing.append(f"No {name}{who}{f': {why}' if why else ''}.")


def number(value: float | None, form: str = ".4g") -> str:
    """A number, or a dash where it is not known."""
    return UNKNOWN if value is None or value != value else format(value, form)
