"""Rows that are tokens already: ids with a target mask, checked instead of tokenised."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np

from lift_ds.data.settings import ColumnsConfig
from lift_ds.data.sources import Row

from .chat import ChatEncoder, Tokens
from .records import value_at

NOT_LEARNED = -100  # in labels, as Hugging Face's losses have it


def read_tokens(row: Row, columns: ColumnsConfig, encoder: ChatEncoder) -> Tokens:
    """The tokens of a row as they stand in it; a row that is too long is cut or refused as a text is.

    Args:
        row: Has the columns as lists or numpy arrays.
        columns: Names `input_ids` and `target_mask` (and perhaps `filler_mask`), or `labels` (and `attention_mask`).
        encoder: Says how many token ids and how many tokens of a row there may be.

    Raises:
        TooLongError: It has more than `encoder.max_length` tokens and is not cut, or no target would be left.
        ValueError: A column is missing or of another type or length, an id is unknown, or nothing is learned; the
            message begins with file and line.
    """
    ids = numbers_at(row, str(columns.input_ids)).astype(np.int64)
    targets = columns.target_mask or columns.labels
    if columns.labels is None:
        response = mask_at(row, str(targets), len(ids))
    else:
        ids, response = read_labels(row, columns, ids)
    if columns.filler_mask is None:
        filler = np.zeros(len(ids), dtype=bool)
    else:
        filler = mask_at(row, columns.filler_mask, len(ids))
    if np.maximum.reduce(ids.view(np.uint64)) >= encoder.num_ids:  # a negative id is a large one there
        index = int(np.flatnonzero((ids < 0) | (ids >= encoder.num_ids))[0])
        raise ValueError(
            f"{row.where}: column {columns.input_ids!r} has id {ids[index]} at place {index}; the tokenizer has ids "
            f"from 0 to {encoder.num_ids - 1}. Were the tokens made for another model?"
        )
    if not np.count_nonzero(response):  # much faster than any() on what is short
        raise ValueError(f"{row.where}: column {targets!r} has no target; at least one token is learned.")
    if np.count_nonzero(filler) and np.count_nonzero(filler > response):
        index = int((filler > response).argmax())
        raise ValueError(f"{row.where}: column {columns.filler_mask!r} is true at place {index}, which is no target.")
    if response[0] and encoder.start_token_id is not None:
        raise ValueError(
            f"{row.where}: column {targets!r} has a target at place 0, but this model predicts a token from the "
            f"one before it; put the start token (id {encoder.start_token_id}) before the row, or clear that target."
        )
    limit = encoder.max_length
    if len(ids) <= limit:
        return Tokens(ids, response, filler)
    encoder.check_length(len(ids), int(response.argmax()), row.where)
    return Tokens(ids[:limit], response[:limit], filler[:limit])


def read_labels(row: Row, columns: ColumnsConfig, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ids without padding, and which are learned: those whose label is not -100.

    Raises:
        ValueError: A label is another id than its token (labels that were shifted, for example), or padding is learned.
    """
    labels = numbers_at(row, str(columns.labels))
    if len(labels) != len(ids):
        raise ValueError(f"{row.where}: column {columns.labels!r} has {len(labels)} entries for {len(ids)} token ids.")
    response = labels != NOT_LEARNED
    wrong = response & (labels != ids)
    if wrong.any():
        place = int(wrong.argmax())
        raise ValueError(
            f"{row.where}: column {columns.labels!r} is {labels[place]} at place {place}, where the id is "
            f"{ids[place]}; a token is its own label, or -100. Were they shifted?"
        )
    if columns.attention_mask is None:
        return ids, response
    is_there = mask_at(row, columns.attention_mask, len(ids))
    if (response & ~is_there).any():
        place = int((response & ~is_there).argmax())
        raise ValueError(f"{row.where}: column {columns.labels!r} has a target at place {place}, which is padding.")
    return ids[is_there], response[is_there]


def numbers_at(row: Row, column: str) -> np.ndarray:
    """A non-empty list of integers or booleans of a row.

    Raises:
        ValueError: It is something else; the message names file and line.
    """
    value: Any = row.values[column] if column in row.values else value_at(row, column)
    if isinstance(value, list):
        with suppress(ValueError):  # lists of different lengths
            value = np.asarray(value)
    if isinstance(value, np.ndarray) and value.dtype.kind in "iub" and value.ndim == 1 and len(value):
        return value
    raise ValueError(f"{row.where}: column {column!r} must hold a list of whole numbers, not {str(value)[:40]!r}.")


def mask_at(row: Row, column: str, length: int) -> np.ndarray:
    """A list of `length` booleans, or of 0 and 1, as bool (length,).

    Raises:
        ValueError: It is something else; the message names file and line.
    """
    numbers = numbers_at(row, column)
    if len(numbers) != length:
        raise ValueError(f"{row.where}: column {column!r} has {len(numbers)} entries for {length} token ids.")
    if numbers.dtype.kind != "b" and not np.isin(numbers, (0, 1)).all():
        raise ValueError(f"{row.where}: column {column!r} must hold true and false, or 1 and 0.")
    return numbers.astype(bool, copy=False)
