"""Parquet and Arrow files: row groups and record batches are the chunks."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from .filesystem import SCAN_BYTES, FileSource
from .source import Chunk, Row, SourceIndex, locate_errors
from .table_rows import TableRows

PARQUET_TAIL = 8  # length of the footer as 4 bytes, then PAR1
PARQUET_MAGIC = b"PAR1"
ARROW_MAGIC = b"ARROW1"


class Columnar(FileSource):
    """A file whose parts are tables."""

    def rows(self, table: pa.Table | pa.RecordBatch, first_row: int) -> Sequence[Row]:
        """The rows of a table; where one of them cannot be converted, the others still are."""
        try:
            return TableRows(table, self.name, first_row)
        except (ValueError, OverflowError):  # a broken string or a date that Python does not have
            return [self._only_row(table.slice(index, 1), first_row + index) for index in range(table.num_rows)]

    def _only_row(self, table: pa.Table | pa.RecordBatch, number: int) -> Row:
        try:
            return TableRows(table, self.name, number)[0]
        except (ValueError, OverflowError) as error:
            return Row({}, f"{self.name}: row {number}", f"a value cannot be read: {type(error).__name__}: {error}.")


class Parquet(Columnar):
    """A parquet file; of a remote one, only the footer and the row groups that are asked for are fetched."""

    def scan(self) -> SourceIndex:
        """Reads the footer only; with the file's size it is also what the hash is made of."""
        with locate_errors(self.name, "parquet", self.file.diagnosis), self.file.open() as file:
            size = self.file.size
            footer = _read_footer(file, size)
            metadata = pq.read_metadata(pa.BufferReader(footer))
        sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        first_rows = accumulate(sizes, initial=0)
        chunks = tuple(
            Chunk(self.name, group, count, first_line=first)
            for group, (count, first) in enumerate(zip(sizes, first_rows, strict=False))
            if count
        )
        return SourceIndex(chunks, hashlib.sha256(footer + str(size).encode()).hexdigest())

    def read(self, chunk: Chunk) -> Sequence[Row]:
        """Decodes one row group."""
        where = f"{self.name}: row group {chunk.start}"
        with (
            locate_errors(where, "parquet", self.file.diagnosis),
            self.file.open() as file,
            pq.ParquetFile(file) as opened,
        ):
            table = opened.read_row_group(chunk.start)
        return self.rows(table, chunk.first_line)


def _read_footer(file: IO[bytes], size: int) -> bytes:
    """The last bytes of a parquet file, from its metadata on."""
    file.seek(max(size - PARQUET_TAIL, 0))
    tail = file.read(PARQUET_TAIL)
    if len(tail) < PARQUET_TAIL or tail[4:] != PARQUET_MAGIC:
        raise ValueError("it does not end with a parquet footer")
    length = int.from_bytes(tail[:4], "little") + PARQUET_TAIL
    if length > size:
        raise ValueError(f"its footer has {length} bytes, the file {size}")
    file.seek(size - length)
    return file.read(length)


class Arrow(Columnar):
    """An Arrow IPC file: the file format (.feather), or the stream format that `datasets` writes.

    A stream has no table of contents, so that the first pass reads the whole file; its chunks are byte ranges.
    """

    def scan(self) -> SourceIndex:
        """Lists the record batches, and hashes the whole file."""
        with locate_errors(self.name, "arrow", self.file.diagnosis), self._open_native(is_sequential=True) as source:
            if source.read(len(ARROW_MAGIC)) == ARROW_MAGIC:
                reader = pa.ipc.open_file(source)
                sizes = (reader.get_batch(number).num_rows for number in range(reader.num_record_batches))
                parts: Iterable[tuple[int, int, int]] = [(number, 0, size) for number, size in enumerate(sizes)]
            else:
                source.seek(0)
                parts = _list_stream(source)
            hasher = hashlib.sha256()
            source.seek(0)
            while block := source.read(SCAN_BYTES):
                hasher.update(block)
        chunks, first_row = [], 0
        for start, num_bytes, num_rows in parts:
            if num_rows:
                chunks.append(Chunk(self.name, start, num_rows, first_row, num_bytes))
            first_row += num_rows
        return SourceIndex(tuple(chunks), hasher.hexdigest())

    def read(self, chunk: Chunk) -> Sequence[Row]:
        """Decodes one record batch; only a stream's chunks have a length in bytes."""
        where = f"{self.name}: record batch at row {chunk.first_line}"
        with locate_errors(where, "arrow", self.file.diagnosis), self._open_native() as source:
            if not chunk.num_bytes:
                batch = pa.ipc.open_file(source).get_batch(chunk.start)
            else:
                schema = pa.ipc.read_schema(source)
                source.seek(chunk.start)
                batch = pa.ipc.read_record_batch(pa.ipc.read_message(source.read(chunk.num_bytes)), schema)
            batch.validate(full=False)
            return self.rows(batch, chunk.first_line)

    def _open_native(self, is_sequential: bool = False) -> Any:
        """The file as Arrow reads it; a local one is mapped, so that bodies that nobody looks at are not read."""
        if "://" in self.name:
            return pa.PythonFile(self.file.open(is_sequential), mode="r")
        return pa.memory_map(self.name)


def _list_stream(source: Any) -> list[tuple[int, int, int]]:
    """(offset, bytes, rows) of every record batch of a stream."""
    schema = pa.ipc.read_schema(source)
    batches: list[tuple[int, int, int]] = []
    while True:
        start = source.tell()
        try:
            message = pa.ipc.read_message(source)
        except EOFError:
            return batches
        if message.type != "record batch":
            raise ValueError(f"a {message.type} in a stream; write the file as parquet, or without dictionaries")
        batch = pa.ipc.read_record_batch(message, schema)
        batches.append((start, source.tell() - start, batch.num_rows))
