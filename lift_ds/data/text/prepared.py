"""Rows that are tokens already, and `prepared.json` beside them: which tokenizer and settings made their tokens."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from lift_ds.data.settings import ColumnsConfig
from lift_ds.data.sources import Manifest, Retry, Row
from lift_ds.data.sources.filesystem import DataFile, is_remote
from lift_ds.data.sources.folders import PREPARED_NAME
from lift_ds.text_files import load_json

from .chat import ChatEncoder, Tokens
from .records import value_at
from .templates import has_clock
from .turns import RowRules

REMOTE_TRIES = 2
NOT_LEARNED = -100  # in labels, as Hugging Face's losses have it
LATER_SETTINGS = ("data.reasoning", "data.ignore", "data.dropped_text", "data.clock")


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of what token ids mean: every token with its id, and which of them are special."""
    special = sorted(token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special)
    meaning = json.dumps([sorted(tokenizer.get_vocab().items()), special])
    return hashlib.sha256(meaning.encode("utf-8", "surrogatepass")).hexdigest()


def token_settings(encoder: ChatEncoder, rules: RowRules) -> dict[str, Any]:
    """The settings that decide the tokens of a row that is short enough, by their keys; the template by its hash.

    Of those that came later, only what departs from the default, so that older records mean the same.
    """
    template = encoder.tokenizer.get_chat_template() if encoder.tokenizer.chat_template else ""
    later = (
        rules.reasoning if rules.reasoning != "template" else None,
        sorted(rules.ignore) or None,
        "allow" if encoder.renderer.may_drop else None,
        encoder.renderer.clock.isoformat() if has_clock(template) else None,
    )
    return {
        "chat template": hashlib.sha256(template.encode()).hexdigest() if template else None,
        "data.pad_targets": encoder.pad_targets,
        "data.pad_to_multiple": encoder.pad_to_multiple,
        "data.train_on": encoder.renderer.train_on,
        "data.system": rules.system,
    } | {key: value for key, value in zip(LATER_SETTINGS, later, strict=True) if value is not None}


def check_prepared(manifest: Manifest, columns: Sequence[ColumnsConfig], encoder: ChatEncoder, rules: RowRules) -> None:
    """Compares what made pre-tokenised files with this run; files without a `prepared.json` are taken on trust.

    Raises:
        ValueError: The tokens are another tokenizer's.
    """
    ready = [
        group
        for group, columns_of_group in zip(manifest.groups, columns, strict=True)
        if columns_of_group.input_ids is not None
    ]
    if not ready:
        return
    numbers = (number for group in ready for number in range(group.first_chunk, group.first_chunk + group.num_chunks))
    folders = dict.fromkeys(folder_of(manifest.chunks[number].source) for number in numbers)
    settings = token_settings(encoder, rules)
    own_hash = tokenizer_hash(encoder.tokenizer)
    for folder in folders:
        kept = read_prepared(folder)
        if kept is None:
            continue
        if kept["tokenizer_hash"] != own_hash:
            raise ValueError(
                f"{folder}: its tokens were made with the tokenizer of {kept['model']} (hash "
                f"{kept['tokenizer_hash'][:12]}, see {PREPARED_NAME}); this model's has {own_hash[:12]}. Name that "
                "model, or prepare the rows again with this one: tools/prepare_data.py --model ... --write ..."
            )
        for name in changed_settings(kept["settings"], settings):
            warnings.warn(
                f"{folder}: tokens made with {name}={kept['settings'].get(name)!r}; this run's "
                f"{settings.get(name)!r} does not change them.",
                stacklevel=2,
            )


def changed_settings(kept: dict[str, Any], mine: dict[str, Any]) -> list[str]:
    """Names of token settings that differ; of others that were kept beside them, none."""
    names = [*mine, *(name for name in kept if name in LATER_SETTINGS and name not in mine)]
    return [name for name in names if kept.get(name) != mine.get(name)]


def folder_of(source: str) -> str:
    """The folder of a file; the query of a URL is not part of its name."""
    return os.path.dirname(source.partition("?")[0] if is_remote(source) else source)


def read_prepared(folder: str) -> dict[str, Any] | None:
    """What `prepared.json` in a folder says, or `None` where there is none.

    Raises:
        ValueError: It is damaged.
        ConnectionError: A server did not answer.
    """
    path = f"{folder}/{PREPARED_NAME}" if folder else PREPARED_NAME
    try:
        with DataFile(path, Retry(tries=REMOTE_TRIES)).open() as file:
            text = file.read()
    except FileNotFoundError:
        return None
    except ValueError as error:
        warnings.warn(f"{path}: cannot be read, so nothing is known of the tokenizer: {error}", stacklevel=2)
        return None
    try:
        kept = load_json(text.decode("utf-8-sig"))
        if isinstance(kept["tokenizer_hash"], str) and isinstance(kept["settings"], dict) and kept["model"]:
            return dict(kept)
    except (ValueError, KeyError, TypeError):
        pass
    raise ValueError(f"{path}: is damaged; write the folder again with tools/prepare_data.py.")


def read_tokens(row: Row, columns: ColumnsConfig, encoder: ChatEncoder) -> Tokens:
    """The tokens of a row as they stand in it; a row that is too long is cut or refused as a text is.

    Raises:
        TooLongError: It has more than `encoder.max_length` tokens and is not cut, or no target would be left.
        ValueError: A column is missing or of another type or length, an id is unknown, or nothing is learned; the
            message begins with file and line.
    """
    ids = _numbers_at(row, str(columns.input_ids)).astype(np.int64)
    targets = columns.target_mask or columns.labels
    if columns.labels is None:
        response = _mask_at(row, str(targets), len(ids))
    else:
        ids, response = _read_labels(row, columns, ids)
    if columns.filler_mask is None:
        filler = np.zeros(len(ids), dtype=bool)
    else:
        filler = _mask_at(row, columns.filler_mask, len(ids))
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
    return encoder.fit(Tokens(ids, response, filler), row.where)


def _read_labels(row: Row, columns: ColumnsConfig, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ids without padding, and which are learned: those whose label is not -100."""
    labels = _numbers_at(row, str(columns.labels))
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
    is_there = _mask_at(row, columns.attention_mask, len(ids))
    if (response & ~is_there).any():
        place = int((response & ~is_there).argmax())
        raise ValueError(f"{row.where}: column {columns.labels!r} has a target at place {place}, which is padding.")
    return ids[is_there], response[is_there]


def _numbers_at(row: Row, column: str) -> np.ndarray:
    value: Any = row.values[column] if column in row.values else value_at(row, column)
    if isinstance(value, list):
        with suppress(ValueError):  # lists of different lengths
            value = np.asarray(value)
    if isinstance(value, np.ndarray) and value.dtype.kind in "iub" and value.ndim == 1 and len(value):
        return value
    raise ValueError(f"{row.where}: column {column!r} must hold a list of whole numbers, not {str(value)[:40]!r}.")


def _mask_at(row: Row, column: str, length: int) -> np.ndarray:
    numbers = _numbers_at(row, column)
    if len(numbers) != length:
        raise ValueError(f"{row.where}: column {column!r} has {len(numbers)} entries for {length} token ids.")
    if numbers.dtype.kind != "b" and not np.isin(numbers, (0, 1)).all():
        raise ValueError(f"{row.where}: column {column!r} must hold true and false, or 1 and 0.")
    return numbers.astype(bool, copy=False)
