"""Parquet and Arrow files: row groups and record batches are the chunks.

Columns of every Arrow type become the Python values that JSON would have: lists of integers or booleans numpy arrays,
maps objects, and binary columns that hold UTF-8 text texts, as old writers of parquet mark none of theirs as text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .filesystem import SCAN_BYTES, FileSource
from .source import Chunk, Row, SourceIndex, locate_errors

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


class TableRows(Sequence[Row]):
    """The rows of a table, made when they are asked for: a chunk of small objects would keep the collector busy.

    Raises:
        ValueError: A value has no Python form, or two columns have one name.
        OverflowError: As `ValueError`.
    """

    def __init__(self, table: pa.Table | pa.RecordBatch, name: str, first_row: int) -> None:
        self.names, self.num_rows = table.schema.names, table.num_rows
        repeated = sorted({column for column in self.names if self.names.count(column) > 1})
        if repeated:
            raise ValueError(f"two columns are named {repeated[0]!r}; rename one")
        self.columns = [_column_values(column) for column in table.columns]
        self.name, self.first_row = name, first_row

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(self.num_rows))]
        if not 0 <= index < self.num_rows:
            raise IndexError(index)
        values = {name: column[index] for name, column in zip(self.names, self.columns, strict=True)}
        return Row(values, f"{self.name}: row {self.first_row + index}")


class _ListSlices:
    """The lists of a column as slices of all their values, which are read-only; `None` where one is missing."""

    def __init__(self, values: np.ndarray, borders: np.ndarray, is_there: np.ndarray | None) -> None:
        values.flags.writeable = False
        self.values, self.borders, self.is_there = values, borders, is_there

    def __getitem__(self, index: int) -> np.ndarray | None:
        if self.is_there is not None and not self.is_there[index]:
            return None
        return self.values[self.borders[index] : self.borders[index + 1]]


def _column_values(column: pa.ChunkedArray | pa.Array) -> list[Any] | _ListSlices:
    kind = column.type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if not is_list or not (pa.types.is_integer(kind.value_type) or pa.types.is_boolean(kind.value_type)):
        values = column.to_pylist()
        return [_as_json(value, kind) for value in values] if _needs_change(kind) else list(values)
    parts = [list_slices(part) for part in (column.chunks if isinstance(column, pa.ChunkedArray) else [column])]
    if len(parts) == 1:
        return parts[0]
    return [part[index] for part, whole in zip(parts, column.chunks, strict=True) for index in range(len(whole))]


def list_slices(array: pa.Array) -> list[Any] | _ListSlices:
    """The lists of an array; Python lists where a number is missing.

    Raises:
        ValueError: The borders of the lists are broken.
    """
    borders = array.offsets.to_numpy()
    if len(array) and (borders[0] < 0 or borders[-1] > len(array.values) or np.any(borders[1:] < borders[:-1])):
        raise ValueError("the borders of its lists are out of order")
    if array.values.null_count:
        return list(array.to_pylist())
    is_there = array.is_valid().to_numpy(zero_copy_only=False) if array.null_count else None
    return _ListSlices(array.values.to_numpy(zero_copy_only=False), borders, is_there)


def _is_any_list(kind: pa.DataType) -> bool:
    tests = ("list", "large_list", "fixed_size_list", "list_view", "large_list_view")
    return any(getattr(pa.types, f"is_{test}")(kind) for test in tests)


def _is_bytes(kind: pa.DataType) -> bool:
    return any(test(kind) for test in (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view))


def _needs_change(kind: pa.DataType) -> bool:
    if _is_any_list(kind) or pa.types.is_dictionary(kind):
        return _needs_change(kind.value_type)
    if pa.types.is_struct(kind):
        return any(_needs_change(field.type) for field in kind)
    return bool(pa.types.is_map(kind)) or _is_bytes(kind)


def _as_json(value: Any, kind: pa.DataType) -> Any:
    if value is None or not _needs_change(kind):
        return value
    if _is_bytes(kind):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return value  # an image, say: whoever takes it for a text refuses it
    if pa.types.is_dictionary(kind):
        return _as_json(value, kind.value_type)
    if _is_any_list(kind):
        return [_as_json(part, kind.value_type) for part in value]
    if pa.types.is_struct(kind):
        return {field.name: _as_json(value[field.name], field.type) for field in kind}
    if pa.types.is_nested(kind.key_type):
        raise ValueError(f"a map whose keys are {kind.key_type}; only plain keys can be read")
    pairs = [(_as_json(key, kind.key_type), _as_json(part, kind.item_type)) for key, part in value]
    changed = dict(pairs)
    if len(changed) < len(pairs):
        raise ValueError(f"a map has a key twice; its keys are {[key for key, _ in pairs]}")
    return changed
