"""What stands beside pre-tokenised rows, in `prepared.json`: which tokenizer and settings made their tokens."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from lift_ds.data.settings import ColumnsConfig
from lift_ds.data.sources import Manifest, Retry
from lift_ds.data.sources.filesystem import DataFile, is_remote
from lift_ds.text_files import load_json

from .chat import ChatEncoder
from .clock import has_clock
from .turns import RowRules

PREPARED_NAME = "prepared.json"
REMOTE_TRIES = 2
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

    Args:
        manifest: All rows.
        columns: Of each of its groups; those without `input_ids` are left out.
        encoder: This run's.
        rules: This run's.

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
