"""Rows as documents."""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from enum import Enum

from lift_ds.config import ColumnsConfig

from .batch import Document
from .chat import ChatEncoder, TooLongError
from .lanes import SampleRef
from .records import detect_columns, read_conversation
from .sources import Manifest, Row


class Skipped(Enum):
    """Why a row is left out."""

    BAD = "bad"
    LONG = "long"


class RowReader:
    """Documents by reference: reads chunks (least recently used ones are forgotten) and tokenises rows.

    Args:
        manifest: The rows.
        encoder: Text to tokens.
        columns: The mapping, or `None` to detect it from the first row.
        system: System text put before every conversation.
        skip_long: Return `None` for rows that are too long, instead of raising.
        max_chunks: How many chunks are kept in memory.
    """

    def __init__(
        self,
        manifest: Manifest,
        encoder: ChatEncoder,
        columns: ColumnsConfig | None,
        system: str | None = None,
        skip_long: bool = False,
        max_chunks: int = 256,
    ) -> None:
        """Detects the columns where none are given."""
        self.manifest, self.encoder, self.system, self.skip_long = manifest, encoder, system, skip_long
        self.max_chunks = max_chunks
        self._chunks: OrderedDict[int, list[Row]] = OrderedDict()
        self.columns = columns or detect_columns(self.chunk(0)[0])

    def chunk(self, chunk_index: int) -> list[Row]:
        """Rows of one chunk."""
        if chunk_index not in self._chunks:
            self._chunks[chunk_index] = self.manifest.read(chunk_index)
            if len(self._chunks) > self.max_chunks:
                self._chunks.popitem(last=False)
        self._chunks.move_to_end(chunk_index)
        return self._chunks[chunk_index]

    def try_document(self, ref: SampleRef) -> Document | Skipped:
        """The tokenised row, or why it is left out."""
        try:
            return self.document(ref)
        except TooLongError:
            if self.skip_long:
                return Skipped.LONG
            raise

    def document(self, ref: SampleRef) -> Document:
        """The tokenised row.

        Raises:
            ValueError: The row does not fit the columns, or is too long; the message names file and line.
        """
        row = self.chunk(ref.chunk_index)[ref.row]
        try:
            tokens = self.encoder.encode(read_conversation(row, self.columns, self.system), row.where)
        except TooLongError:
            raise
        except Exception as error:  # templates and tokenizers raise what they like; the ranks must hear of all of it
            located = (
                str(error) if str(error).startswith(row.where) else f"{row.where}: {type(error).__name__}: {error}"
            )
            raise ValueError(located) from error
        return Document(tokens.ids, tokens.response_mask, tokens.filler_mask, ref.sample_id, ref.epoch, row.where)

    def by_sample_id(self, sample_ids: Iterable[int]) -> Iterator[Document]:
        """Documents of given rows, as of epoch 0; rows that are too long are left out where they are skipped."""
        for sample_id in sample_ids:
            chunk_index = bisect_right(self.manifest.first_ids, sample_id) - 1
            row = sample_id - self.manifest.first_ids[chunk_index]
            document = self.try_document(SampleRef(0, chunk_index, row, sample_id))
            if not isinstance(document, Skipped):
                yield document
