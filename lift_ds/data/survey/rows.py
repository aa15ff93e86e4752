"""Every row once, in file order: its tokens, or what is wrong with it."""

from __future__ import annotations

import multiprocessing
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass

from lift_ds.config import ColumnsConfig
from lift_ds.data.chat import Tokens, TooLongError
from lift_ds.data.reader import RowReader, Skipped
from lift_ds.data.ready_rows import read_tokens
from lift_ds.data.records import Conversation, read_conversation
from lift_ds.data.sources import Row

BATCH_ROWS = 256
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
    """

    sample_id: int
    group: int
    where: str
    tokens: Tokens | None
    reason: Skipped | None = None
    problem: str = ""


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
            yield from survey_chunk(reader, chunk)
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
    return list(survey_chunk(_reader, chunk_index))


def survey_chunk(reader: RowReader, chunk_index: int) -> Iterator[list[SurveyedRow]]:
    """The rows of one chunk, at most `BATCH_ROWS` at a time, with the errors of `survey`."""
    groups = reader.manifest.groups
    group = bisect_right([each.first_chunk for each in groups], chunk_index) - 1
    first_id = reader.manifest.first_ids[chunk_index]
    rows = reader.manifest.read(chunk_index)
    for start in range(0, len(rows), BATCH_ROWS):
        batch = rows[start : start + BATCH_ROWS]
        found = tokenise(reader, batch, reader.columns[group])
        ids = range(first_id + start, first_id + start + len(batch))
        yield [judge(*each, group) for each in zip(ids, batch, found, strict=True)]


def tokenise(reader: RowReader, rows: Sequence[Row], columns: ColumnsConfig) -> list[Tokens | Exception]:
    """The tokens of each row, or what `RowReader.document` would raise of it."""
    found = [attempt(row, columns, reader) for row in rows]
    places = [place for place, each in enumerate(found) if isinstance(each, Conversation)]
    conversations = [each for each in found if isinstance(each, Conversation)]
    encoded = reader.encoder.encode_batch(conversations, [rows[place].where for place in places])
    by_place = dict(zip(places, encoded, strict=True))
    return [each if not isinstance(each, Conversation) else by_place[place] for place, each in enumerate(found)]


def attempt(row: Row, columns: ColumnsConfig, reader: RowReader) -> Conversation | Tokens | Exception:
    """What a row holds before it is tokenised, or its error."""
    if row.problem is not None:
        return ValueError(row.problem)
    try:
        if columns.input_ids is not None:
            return read_tokens(row, columns, reader.encoder)
        return read_conversation(row, columns, reader.system)
    except Exception as error:  # whatever it is, it is this row's
        return error


def judge(sample_id: int, row: Row, found: Tokens | Exception, group: int) -> SurveyedRow:
    """A row with its tokens or its problem; one without a target teaches nothing, and is bad too."""
    if isinstance(found, Tokens):
        if found.response_mask.any():
            return SurveyedRow(sample_id, group, row.where, found)
        found = ValueError("no token is a target, so nothing is learned from it; remove the row.")
    reason = Skipped.LONG if isinstance(found, TooLongError) else Skipped.BAD
    message = str(found) if str(found).startswith(row.where) else f"{row.where}: {found}"
    return SurveyedRow(sample_id, group, row.where, None, reason, message)
