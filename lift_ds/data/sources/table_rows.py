"""Tables as rows: columns of every Arrow type as the Python values that JSON would have.

Lists of integers or booleans become numpy arrays, maps become objects, and binary columns that hold UTF-8 text become
texts, as old writers of parquet mark none of theirs as text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from .source import Row


class TableRows(Sequence[Row]):
    """The rows of a table, made when they are asked for: a chunk of small objects would keep the collector busy.

    Args:
        table: Its columns become Python values; lists of integers or booleans read-only numpy arrays.
        name: The file.
        first_row: Number of the first row in the file.

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
