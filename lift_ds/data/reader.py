"""Rows as documents: by reference, each with the columns of its source."""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from enum import Enum
from itertools import islice

from lift_ds.config import ColumnsConfig

from .batch import Document
from .chat import ChatEncoder, TooLongError
from .lanes import SampleRef, locate
from .prepared import check_prepared
from .ready_rows import read_tokens
from .records import detect_columns, read_conversation
from .sources import Group, Manifest, Row


class BadRowError(ValueError):
    """A row cannot be read or does not fit the columns; `data.on_bad_row` decides what happens."""


class Skipped(Enum):
    """Why a row gives no document."""

    BAD = "bad"
    LONG = "long"


class RowReader:
    """Documents by reference: reads chunks (least recently used ones are forgotten) and tokenises rows.

    Args:
        manifest: The rows.
        encoder: Text to tokens.
        columns: The mapping of groups that have none of their own, or `None` to detect it from their first rows.
        system: System text put before every conversation.
        skip_long: Leave out rows that are too long, instead of raising.
        max_chunks: How many chunks are kept in memory.
        skip_bad: Leave out rows that cannot be read or do not fit the columns, instead of raising.
    """

    def __init__(
        self,
        manifest: Manifest,
        encoder: ChatEncoder,
        columns: ColumnsConfig | None,
        system: str | None = None,
        skip_long: bool = False,
        max_chunks: int = 256,
        skip_bad: bool = False,
    ) -> None:
        """Detects the columns where none are given.

        Raises:
            ValueError: They are of no known format, a file cannot be read, or its tokens are another tokenizer's.
        """
        self.manifest, self.encoder, self.system = manifest, encoder, system
        self.skip_long, self.skip_bad, self.max_chunks = skip_long, skip_bad, max_chunks
        self._chunks: OrderedDict[int, list[Row]] = OrderedDict()
        self._first_chunks = [group.first_chunk for group in manifest.groups]
        self.columns = [group.columns or columns or self.detect(group) for group in manifest.groups]
        check_prepared(manifest, self.columns, encoder, system)

    def detect(self, group: Group) -> ColumnsConfig:
        """The known format of a group's first row that can be read.

        Raises:
            BadRowError: The first row cannot be read, and such rows are not skipped.
            ValueError: No row of the first chunk can be read, or it has no known format.
        """
        rows = self.chunk(group.first_chunk)
        readable = next((row for row in rows if row.problem is None), None)
        first = rows[0] if readable is None or not self.skip_bad else readable
        if first.problem is not None:
            raise BadRowError(f"{first.where}: {first.problem}")
        return detect_columns(first)

    def chunk(self, chunk_index: int) -> list[Row]:
        """Rows of one chunk.

        Raises:
            ValueError: It cannot be decoded; no single row is to blame.
            ConnectionError: A remote file could not be reached.
        """
        if chunk_index not in self._chunks:
            self._chunks[chunk_index] = self.manifest.read(chunk_index)
            if len(self._chunks) > self.max_chunks:
                self._chunks.popitem(last=False)
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
        row = self.chunk(ref.chunk_index)[ref.row]
        if row.problem is not None:
            raise BadRowError(f"{row.where}: {row.problem}")
        columns = self.columns[bisect_right(self._first_chunks, ref.chunk_index) - 1]
        try:
            if columns.input_ids is not None:
                tokens = read_tokens(row, columns, self.encoder)
            else:
                tokens = self.encoder.encode(read_conversation(row, columns, self.system), row.where)
        except TooLongError:
            raise
        except Exception as error:  # templates and tokenizers raise what they like; the ranks must hear of all of it
            located = (
                str(error) if str(error).startswith(row.where) else f"{row.where}: {type(error).__name__}: {error}"
            )
            raise BadRowError(located) from error
        return Document(tokens.ids, tokens.response_mask, tokens.filler_mask, ref.sample_id, ref.epoch, row.where)

    def try_document(self, ref: SampleRef) -> Document | Skipped:
        """The tokenised row, or why it is left out, where such rows are skipped; else the errors of `document`."""
        try:
            return self.document(ref)
        except TooLongError:
            if self.skip_long:
                return Skipped.LONG
            raise
        except BadRowError:
            if self.skip_bad:
                return Skipped.BAD
            raise

    def by_sample_id(self, sample_ids: Iterable[int]) -> Iterator[Document]:
        """Documents of given rows, as of epoch 0; rows that are skipped are left out."""
        for sample_id in sample_ids:
            document = self.try_document(locate(self.manifest, 0, sample_id))
            if isinstance(document, Document):
                yield document

    def first_rows(self, group: Group, count: int) -> Iterator[SampleRef]:
        """References of a group's first rows, at most `count`."""
        first = self.manifest.first_ids[group.first_chunk]
        ids = islice(range(first, first + group.num_rows), count)
        return (locate(self.manifest, 0, sample_id) for sample_id in ids)
