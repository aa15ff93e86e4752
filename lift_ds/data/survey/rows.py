"""Every row once, in file order: its tokens, or what is wrong with it."""

from __future__ import annotations

import multiprocessing
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, replace

from lift_ds.data.reader import BATCH_ROWS, RowReader, Skipped
from lift_ds.data.sources import Row
from lift_ds.data.text.chat import Tokens, TooLongError

CHUNKS_AHEAD = 2  # of each process

_reader: RowReader | None = None  # a process's own


@dataclass(frozen=True)
class SurveyedRow:
    """What one row gives.

    Args:
        sample_id: Row number in the manifest.
        group: Number of its source.
        where: File and line.
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
    """All rows in the order of the manifest, in batches.

    Args:
        reader: The rows, their columns and the encoder.
        num_workers: Processes that read and tokenise chunks; 0: this one.

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
