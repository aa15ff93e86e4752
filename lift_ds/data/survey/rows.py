"""Rows looked at for what is wrong with them: the first of every source before a run, or all of them once."""

from __future__ import annotations

import multiprocessing
import re
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, replace

from lift_ds.data.order.lanes import locate
from lift_ds.data.reader import BATCH_ROWS, RowReader, Skipped
from lift_ds.data.sources import Group, Row
from lift_ds.data.text.chat import Tokens, TooLongError

VARYING = re.compile(r"'[^']*'|\"[^\"]*\"|\d[\d,.]*")
CHUNKS_AHEAD = 2  # of each process

_reader: RowReader | None = None  # a process's own


@dataclass(frozen=True)
class SurveyedRow:
    """What one row gives.

    Args:
        tokens: Its tokens, or `None` where training would leave it out or stop at it.
        reason: Why that is.
        problem: The same as a message that begins with `where`; empty for a good row.
        unused: Its columns, and keys of its messages, that hold something and that no token comes from.
    """

    sample_id: int
    group: int
    where: str
    tokens: Tokens | None
    reason: Skipped | None = None
    problem: str = ""
    unused: tuple[str, ...] = ()


def survey(reader: RowReader, num_workers: int = 0) -> Iterator[list[SurveyedRow]]:
    """All rows in the order of the manifest, in batches; without workers they are read in this process.

    Raises:
        ValueError: A chunk cannot be decoded.
        ConnectionError: A remote file could not be reached.
    """
    chunks = range(len(reader.manifest.chunks))
    if not num_workers:
        for chunk in chunks:
            yield from _survey_chunk(reader, chunk)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, context, initializer=_keep, initargs=(reader,)) as pool:
        waiting: deque[Future[list[list[SurveyedRow]]]] = deque()
        try:
            for chunk in chunks:
                waiting.append(pool.submit(_survey_own, chunk))
                if len(waiting) == CHUNKS_AHEAD * num_workers:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _keep(reader: RowReader) -> None:
    global _reader
    _reader = reader


def _survey_own(chunk_index: int) -> list[list[SurveyedRow]]:
    assert _reader is not None
    return list(_survey_chunk(_reader, chunk_index))


def _survey_chunk(reader: RowReader, chunk_index: int) -> Iterator[list[SurveyedRow]]:
    groups = reader.manifest.groups
    group = bisect_right([group_of_chunks.first_chunk for group_of_chunks in groups], chunk_index) - 1
    first_id = reader.manifest.first_ids[chunk_index]
    rows = reader.manifest.read(chunk_index)
    for start in range(0, len(rows), BATCH_ROWS):
        batch = rows[start : start + BATCH_ROWS]
        tokenised = reader.tokenise([(row, reader.columns[group]) for row in batch])
        ids = range(first_id + start, first_id + start + len(batch))
        yield [
            replace(_judge(*judged, group), unused=tuple(reader.unused(judged[1], reader.columns[group])))
            for judged in zip(ids, batch, tokenised, strict=True)
        ]


def _judge(sample_id: int, row: Row, outcome: Tokens | Exception, group: int) -> SurveyedRow:
    """A row with its tokens or its problem; one without a target teaches nothing, and is bad too."""
    if isinstance(outcome, Tokens):
        if outcome.response_mask.any():
            return SurveyedRow(sample_id, group, row.where, outcome)
        outcome = ValueError("no token is a target, so nothing is learned from it; remove the row.")
    reason = Skipped.LONG if isinstance(outcome, TooLongError) else Skipped.BAD
    message = str(outcome) if str(outcome).startswith(row.where) else f"{row.where}: {outcome}"
    return SurveyedRow(sample_id, group, row.where, None, reason, message)


@dataclass(frozen=True)
class FirstRows:
    """What was found.

    Args:
        num_good: Rows that can be used.
        num_bad: Rows that are skipped because they are malformed.
        num_long: Rows that are skipped because they are too long.
        longest: Tokens of the longest row that can be used.
        unused: What each source holds that no token comes from.
        num_response_tokens: Of all rows that can be used, fillers left out.
    """

    num_good: int
    num_bad: int
    num_long: int
    longest: int
    unused: dict[str, Counter[str]]
    num_response_tokens: int = 0

    @property
    def num_checked(self) -> int:
        """Rows that were looked at."""
        return self.num_good + self.num_bad + self.num_long

    def __str__(self) -> str:
        skipped = [(self.num_bad, "bad"), (self.num_long, "too long")]
        parts = [f"{count} {reason}" for count, reason in skipped if count]
        checked = f"{self.num_checked} checked"
        return f"{checked} ({', '.join(parts)}: skipped)" if parts else checked

    def unused_lines(self) -> list[str]:
        """What is not used, a line for each source that has such columns or keys."""
        return [f"not used of {name}: {counted(counts)}" for name, counts in self.unused.items() if counts]


def counted(counts: Counter[str]) -> str:
    """Names with how often they occurred."""
    return ", ".join(f"{name} ({count:,} times)" for name, count in counts.most_common())


def check_first_rows(reader: RowReader, count: int, max_skipped: float = 1.0) -> FirstRows:
    """Reads the first `count` rows, shared evenly by the sources, so that bad ones are found before training.

    Raises:
        ValueError: A row is malformed or too long and not skipped, or too many are skipped; the message names file and
            line.
    """
    groups = reader.manifest.groups
    totals: Counter[Skipped | None] = Counter()
    unused: dict[str, Counter[str]] = {}
    longest = num_tokens = 0
    for group, columns in zip(groups, reader.columns, strict=True):
        first = reader.manifest.first_ids[group.first_chunk]
        num_read = min(group.num_rows, -(-count // len(groups)))
        refs = [locate(reader.manifest, 0, sample_id) for sample_id in range(first, first + num_read)]
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
        documents = [kept for _, kept in outcomes if not isinstance(kept, Skipped)]
        longest = max([longest, *(len(document.ids) for document in documents)])
        num_tokens += sum(int((document.response_mask & ~document.filler_mask).sum()) for document in documents)
        unused[group.name] = Counter(
            key for ref in refs for key in reader.unused(reader.chunk(ref.chunk_index)[ref.row], columns)
        )
    return FirstRows(totals[None], totals[Skipped.BAD], totals[Skipped.LONG], longest, unused, num_tokens)


def _too_many(group: Group, problems: list[str], num_rows: int, max_skipped: float) -> str:
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
