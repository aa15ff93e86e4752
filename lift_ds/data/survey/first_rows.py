"""The first rows of every source, read before a run: whether they are good, and what of them is not used."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from lift_ds.data.reader import RowReader, Skipped
from lift_ds.data.sources import Group

VARYING = re.compile(r"'[^']*'|\"[^\"]*\"|\d[\d,.]*")


@dataclass(frozen=True)
class FirstRows:
    """What was found: how many rows can be used or are skipped, and what each source holds that no token comes from."""

    num_good: int
    num_bad: int
    num_long: int
    unused: dict[str, Counter[str]]

    def __str__(self) -> str:
        skipped = [(self.num_bad, "bad"), (self.num_long, "too long")]
        parts = [f"{count} {reason}" for count, reason in skipped if count]
        checked = f"{self.num_good + self.num_bad + self.num_long} checked"
        return f"{checked} ({', '.join(parts)}: skipped)" if parts else checked

    def unused_lines(self) -> list[str]:
        """What is not used, a line for each source that has such columns or keys."""
        return [f"not used of {name}: {counted(counts)}" for name, counts in self.unused.items() if counts]


def counted(counts: Counter[str]) -> str:
    """Names with how often they occurred."""
    return ", ".join(f"{name} ({count:,} times)" for name, count in counts.most_common())


def check_first_rows(reader: RowReader, count: int, max_skipped: float = 1.0) -> FirstRows:
    """Reads and tokenises the first rows of every source, so that bad ones are found before training.

    Args:
        reader: The rows.
        count: Rows in all; shared evenly by the sources.
        max_skipped: The largest share of a source's first rows that may be skipped.

    Raises:
        ValueError: A row is malformed or too long and not skipped, or too many are skipped; the message names file and
            line.
    """
    groups = reader.manifest.groups
    totals: Counter[Skipped | None] = Counter()
    unused: dict[str, Counter[str]] = {}
    for group, columns in zip(groups, reader.columns, strict=True):
        refs = list(reader.first_rows(group, -(-count // len(groups))))
        outcomes = [(outcome, reader.settle(outcome)) for outcome in reader.outcomes(refs)]
        problems = [str(outcome) for outcome, _ in outcomes if isinstance(outcome, Exception)]
        if problems and len(problems) == len(refs):
            raise ValueError(
                f"{group.name}: none of the first {len(refs)} rows can be used: {problems[0]} Mend the rows or their "
                "columns, or look at more of them: data.check_rows."
            )
        if len(problems) > max_skipped * len(refs):
            raise ValueError(_too_many(group, problems, len(refs), max_skipped))
        totals.update(kept if isinstance(kept, Skipped) else None for _, kept in outcomes)
        unused[group.name] = Counter(
            key for ref in refs for key in reader.unused(reader.chunk(ref.chunk_index)[ref.row], columns)
        )
    return FirstRows(totals[None], totals[Skipped.BAD], totals[Skipped.LONG], unused)


def _too_many(group: Group, problems: list[str], num_rows: int, max_skipped: float) -> str:
    """Why a run stops: the most frequent reason, by its first example."""
    kinds = Counter(map(_kind_of, problems))
    most, times = kinds.most_common(1)[0]
    example = next(problem for problem in problems if _kind_of(problem) == most)
    return (
        f"{group.name}: {len(problems)} of the first {num_rows} rows would be skipped, more than data.max_skipped="
        f"{max_skipped:g} allows; {times} of them like this one: {example} Mend the rows or their columns, or set "
        "data.max_skipped=1 where so many are meant to be left out."
    )


def _kind_of(problem: str) -> str:
    """A problem without what differs from row to row: its place, numbers and quoted values."""
    return VARYING.sub("", problem.partition(": ")[2])
