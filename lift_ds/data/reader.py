"""Rows as documents: by reference, each with the columns of its source."""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum
from itertools import islice

from lift_ds.data.order.lanes import WINDOW_ROWS, SampleRef, locate
from lift_ds.data.text.chat import ChatEncoder, Tokens, TooLongError
from lift_ds.data.text.prepared import check_prepared, read_tokens
from lift_ds.data.text.records import Conversation, detect_columns, read_conversation, unused_keys
from lift_ds.data.text.turns import RowRules

from .batch import Document
from .settings import ColumnsConfig
from .sources import Group, Manifest, Row

BATCH_ROWS = 256


class BadRowError(ValueError):
    """A row cannot be read or does not fit the columns; `data.on_bad_row` decides what happens."""


class Skipped(Enum):
    """Why a row gives no document."""

    BAD = "bad"
    LONG = "long"


class RowReader:
    """Documents by reference: reads chunks (least recently used ones are forgotten) and tokenises rows.

    Args:
        columns: The mapping of groups that have none of their own, or `None` to detect it from their first rows.
        min_chunks: Chunks that are kept in memory whatever their size, besides those that hold `WINDOW_ROWS` together.

    Raises:
        ValueError: The columns are of no known format, a file cannot be read, or its tokens are another tokenizer's.
    """

    def __init__(
        self,
        manifest: Manifest,
        encoder: ChatEncoder,
        columns: ColumnsConfig | None,
        rules: RowRules | None = None,
        skip_long: bool = False,
        min_chunks: int = 8,
        skip_bad: bool = False,
    ) -> None:
        self.manifest, self.encoder, self.rules = manifest, encoder, rules or RowRules()
        self.skip_long, self.skip_bad, self.min_chunks = skip_long, skip_bad, min_chunks
        self._chunks: OrderedDict[int, Sequence[Row]] = OrderedDict()
        self._first_chunks = [group.first_chunk for group in manifest.groups]
        self.columns = [group.columns or columns or self._detect(group) for group in manifest.groups]
        check_prepared(manifest, self.columns, encoder, self.rules)

    def _detect(self, group: Group) -> ColumnsConfig:
        rows = self.chunk(group.first_chunk)
        readable = next((row for row in rows if row.problem is None), None)
        first = rows[0] if readable is None or not self.skip_bad else readable
        if first.problem is not None:
            raise BadRowError(f"{first.where}: {first.problem}")
        return detect_columns(first, self.rules.ignore)

    def chunk(self, chunk_index: int) -> Sequence[Row]:
        """Rows of one chunk.

        Raises:
            ValueError: It cannot be decoded; no single row is to blame.
            ConnectionError: A remote file could not be reached.
        """
        if chunk_index not in self._chunks:
            self._chunks[chunk_index] = self.manifest.read(chunk_index)
            num_rows = sum(len(rows) for rows in self._chunks.values())
            while num_rows > WINDOW_ROWS and len(self._chunks) > self.min_chunks:
                num_rows -= len(self._chunks.popitem(last=False)[1])
        self._chunks.move_to_end(chunk_index)
        return self._chunks[chunk_index]

    def document(self, ref: SampleRef) -> Document:
        """The tokenised row.

        Raises:
            BadRowError: It cannot be read or does not fit the columns; the message names file and line.
            TooLongError: It has more tokens than are allowed.
            ValueError: Its chunk cannot be decoded.
            ConnectionError: A remote file could not be reached.
        """
        (document,) = self.read_batch([ref])
        if isinstance(document, Exception):
            raise document
        return document

    def read_batch(self, refs: Sequence[SampleRef]) -> list[Document | Exception]:
        """Rows, tokenised in one call: of each its document, or the error that `document` raises of it.

        A chunk that cannot be read ends the batch with its error: every other row of it would only try again.
        """
        rows: list[tuple[Row, ColumnsConfig]] = []
        unreadable: list[Document | Exception] = []
        for ref in refs:
            try:
                row = self.chunk(ref.chunk_index)[ref.row]
            except Exception as error:  # it is raised when its turn comes
                unreadable.append(error)
                break
            rows.append((row, self.columns[bisect_right(self._first_chunks, ref.chunk_index) - 1]))
        outcomes: list[Document | Exception] = []
        for ref, (row, _), tokens in zip(refs, rows, self.tokenise(rows), strict=False):
            if isinstance(tokens, Exception):
                outcomes.append(tokens)
            else:
                place = ref.sample_id, ref.epoch, row.where
                outcomes.append(Document(tokens.ids, tokens.response_mask, tokens.filler_mask, *place))
        return outcomes + unreadable

    def tokenise(self, rows: Sequence[tuple[Row, ColumnsConfig]]) -> list[Tokens | Exception]:
        """Tokens of rows, each with its columns: made in one call, or taken where they stand in the row.

        Returns:
            For each its tokens, or a `BadRowError` or `TooLongError` that begins with file and line.
        """
        contents = [self._content(row, columns) for row, columns in rows]
        indices = [index for index, content in enumerate(contents) if isinstance(content, Conversation)]
        conversations = [content for content in contents if isinstance(content, Conversation)]
        results = [content for content in contents if not isinstance(content, Conversation)]
        encoded = self.encoder.encode_batch(conversations, [rows[index][0].where for index in indices])
        for index, tokens in zip(indices, encoded, strict=True):
            results.insert(index, _as_row_error(tokens) if isinstance(tokens, Exception) else tokens)
        return results

    def _content(self, row: Row, columns: ColumnsConfig) -> Conversation | Tokens | Exception:
        """What a row says, or its tokens where they stand in it, or what is wrong with it."""
        if row.problem is not None:
            return BadRowError(f"{row.where}: {row.problem}")
        try:
            if columns.input_ids is not None:
                return read_tokens(row, columns, self.encoder)
            return read_conversation(row, columns, self.rules)
        except ValueError as error:
            return _as_row_error(error)

    def settle(self, outcome: Document | Exception) -> Document | Skipped:
        """The document, or why it is left out where such rows are skipped; else raises the error."""
        if isinstance(outcome, Document):
            return outcome
        if isinstance(outcome, TooLongError) and self.skip_long:
            return Skipped.LONG
        if isinstance(outcome, BadRowError) and self.skip_bad:
            return Skipped.BAD
        raise outcome

    def read(self, refs: Iterable[SampleRef]) -> Iterator[Document | Skipped]:
        """The tokenised rows, or why they are left out, where such rows are skipped; else the errors of `document`."""
        return map(self.settle, self.outcomes(refs))

    def outcomes(self, refs: Iterable[SampleRef]) -> Iterator[Document | Exception]:
        """The tokenised rows, each or the error that `document` raises of it; what ends a batch is raised."""
        waiting = iter(refs)
        while batch := list(islice(waiting, BATCH_ROWS)):
            yield from self.read_batch(batch)

    def unused(self, row: Row, columns: ColumnsConfig) -> list[str]:
        """Columns of a row, and keys of its messages, that hold something and that no token comes from."""
        written = self.encoder.renderer.written_keys
        return [
            key
            for key in unused_keys(row, columns)
            if key.rpartition(".")[2] not in written and key not in self.rules.ignore
        ]

    def where(self, sample_id: int) -> str:
        """File and line of a row."""
        ref = locate(self.manifest, 0, sample_id)
        return self.chunk(ref.chunk_index)[ref.row].where

    def by_sample_id(self, sample_ids: Iterable[int]) -> Iterator[Document]:
        """Documents of given rows, as of epoch 0; rows that are skipped are left out."""
        documents = self.read(locate(self.manifest, 0, sample_id) for sample_id in sample_ids)
        return (document for document in documents if isinstance(document, Document))


def _as_row_error(error: Exception) -> Exception:
    if isinstance(error, (BadRowError, TooLongError)):
        return error
    bad_row = BadRowError(str(error))
    bad_row.__cause__ = error
    return bad_row
