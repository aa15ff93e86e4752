"""A folder's tokenizer, and the ids of its control tokens: from the config, the tokenizer, or the family's row."""

from __future__ import annotations

from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, cast

import transformers
from sentencepiece import SentencePieceProcessor
from transformers import AddedToken, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase
from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

from lift_ds.storage.file_diagnosis import refuse_foreign
from lift_ds.text_files import load_json, read_text

from .registry import family_of, published_ids, standard_tokenizer

TOKENIZER_CONFIG = "tokenizer_config.json"
TOKENIZER_FILES = (
    "tokenizer.json tokenizer_config.json special_tokens_map.json added_tokens.json vocab.json merges.txt vocab.txt "
    "tokenizer.model chat_template.jinja chat_template.json"
).split()
NEEDED_IDS = ("mask_token_id", "eos_token_id", "pad_token_id")


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase | None:
    """The folder's tokenizer, or `None` where it has none.

    Raises:
        ValueError: Its files cannot be read, or all it has is a `tokenizer.model` that is no sentencepiece model.
    """
    for name in TOKENIZER_FILES:  # libraries take a page for a template, or a pointer for merges
        refuse_foreign(folder / name)
    if not any((folder / name).is_file() for name in ("tokenizer.json", TOKENIZER_CONFIG)):
        return load_sentencepiece(folder) if (folder / "tokenizer.model").is_file() else None
    try:
        standard = standard_tokenizer(read_tokenizer_config(folder).get("tokenizer_class"))
        tokenizer_class = AutoTokenizer if standard is None else getattr(transformers, standard)
        return cast(PreTrainedTokenizerBase, tokenizer_class.from_pretrained(folder))
    except Exception as error:
        raise ValueError(
            f"{folder}: the tokenizer cannot be read: {type(error).__name__}: {str(error).splitlines()[0]} Are all of "
            "its files there?"
        ) from error


class SentencePieceTokenizer(SentencePieceBackend):
    """A bare sentencepiece model, with its own ids; its control symbols (`<s>`, `<|eot_id|>`) are special tokens.

    The conversion to a fast tokenizer in transformers 5 drops the model's normalisation and its space before the first
    word, so the ids differ from those the model was trained with. Here sentencepiece itself encodes and decodes.
    """

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Text of pieces: bytes that make up a character are joined, control symbols are written out."""
        is_control = [bool(self.sp_model.is_control(self.sp_model.piece_to_id(token))) for token in tokens]
        runs = groupby(zip(is_control, tokens, strict=True), key=itemgetter(0))
        pieces = [(control, [token for _, token in run]) for control, run in runs]
        return "".join("".join(run) if control else str(self.sp_model.decode(run)) for control, run in pieces)


def load_sentencepiece(folder: Path) -> SentencePieceTokenizer:
    """The tokenizer of a folder with a `tokenizer.model`, perhaps a `chat_template.jinja`, and no other tokenizer file.

    Raises:
        ValueError: The file is no sentencepiece model.
    """
    path = folder / "tokenizer.model"
    try:
        model = SentencePieceProcessor(model_file=str(path))
    except Exception as error:
        raise ValueError(
            f"{path}: no sentencepiece model ({type(error).__name__}). Other formats need a tokenizer.json."
        ) from error
    named: dict[str, Any] = {"unk_token": model.id_to_piece(model.unk_id())}
    for name, token_id in (("bos", model.bos_id()), ("eos", model.eos_id()), ("pad", model.pad_id())):
        if token_id >= 0:
            named[f"{name}_token"] = model.id_to_piece(token_id)
    template = folder / "chat_template.jinja"
    if template.is_file():
        named["chat_template"] = template.read_text(encoding="utf-8")
    tokenizer = SentencePieceTokenizer(vocab_file=str(path), **named)
    control = [model.id_to_piece(token_id) for token_id in range(len(model)) if model.is_control(token_id)]
    tokenizer.add_tokens([AddedToken(piece, normalized=False, special=True) for piece in control], special_tokens=True)
    return tokenizer


def read_tokenizer_config(folder: Path) -> dict[str, Any]:
    """Fields of `tokenizer_config.json`; none where there is no such file.

    Raises:
        ValueError: It is no JSON.
    """
    path = folder / TOKENIZER_CONFIG
    if not path.is_file():
        return {}
    try:
        return dict(load_json(read_text(path)))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}.") from error


def portable_tokenizer_config(folder: Path) -> dict[str, Any]:
    """`tokenizer_config.json` without classes of remote code whose files no export carries."""
    values = read_tokenizer_config(folder)
    standard = standard_tokenizer(values.get("tokenizer_class"))
    if standard is not None:
        values["tokenizer_class"] = standard
        values.pop("auto_map", None)
    return values


def resolve_token_ids(
    config: PretrainedConfig, folder: Path, mask_token_id: int | None = None, is_complete: bool = True
) -> None:
    """Fills ids that the config does not give, in place, from the tokenizer, the published ones or the caller.

    A start token is looked for only where outputs are shifted; see `families.start_token_of`.

    Args:
        config: The config.
        folder: Where it was read, and the tokenizer is.
        mask_token_id: The mask token, where nothing else names it.
        is_complete: Whether ids that are found nowhere are an error.

    Raises:
        ValueError: The mask, end or padding id is not found anywhere, is no row of the embedding, or another one.
    """
    missing = [name for name in (*NEEDED_IDS, "bos_token_id") if getattr(config, name, None) is None]
    rows = int(config.embedding_size)
    if any(name in NEEDED_IDS or config.right_shift_logits for name in missing):
        tokenizer = load_tokenizer(folder)
        published = published_ids(config.model_type, rows)
        for name in missing:
            value = getattr(tokenizer, name, None)
            setattr(config, name, getattr(published, name, None) if value is None else value)
    if family_of(config).end_is_padding:
        end_id, pad_id = config.eos_token_id, config.pad_token_id
        config.eos_token_id = pad_id if end_id is None else end_id
        config.pad_token_id = end_id if pad_id is None else pad_id
    config.mask_token_id = settled(folder, "mask_token_id", config.mask_token_id, mask_token_id)
    for name in NEEDED_IDS:
        value = getattr(config, name)
        if value is None and not is_complete:
            continue
        if not isinstance(value, int) or not 0 <= value < rows:
            given = ", or given: load_pretrained(..., mask_token_id=...)" if name == "mask_token_id" else ""
            raise ValueError(
                f"{folder / 'config.json'}: {name}={value!r}: an id from 0 to {rows - 1} (embedding rows) is needed, "
                f"in config.json or as the tokenizer's own{given}."
            )


def settled(folder: Path, name: str, known: int | None, given: int | None) -> int | None:
    """A number that a folder says, or, where it says none, the caller.

    Raises:
        ValueError: They say different ones.
    """
    if None not in (known, given) and known != given:
        raise ValueError(f"{folder}: {name}={given} is given, but the folder's own is {known}; leave it out.")
    return given if known is None else known


def check_tokenizer(config: PretrainedConfig, tokenizer: Any, folder: Path) -> None:
    """Checks that the tokenizer agrees with the config's mask and end ids, and fits the embedding.

    Raises:
        ValueError: The mask id decodes to something that is no mask token, the end tokens differ, or the tokenizer has
            more tokens than the embedding has rows.
    """
    if len(tokenizer) > config.embedding_size:
        raise ValueError(f"{folder}: {len(tokenizer)} tokens for {config.embedding_size} embedding rows.")
    is_turn_end = tokenizer.eos_token in family_of(config).turn_ends
    if tokenizer.eos_token_id not in (None, config.eos_token_id) and not is_turn_end:
        raise ValueError(
            f"{folder}: eos_token_id={config.eos_token_id} in config.json, {tokenizer.eos_token_id} in the tokenizer; "
            "they must be the same token."
        )
    text, mask_tokens = tokenizer.convert_ids_to_tokens(config.mask_token_id), family_of(config).mask_tokens
    if text is None or (text not in mask_tokens and text != tokenizer.mask_token):
        raise ValueError(
            f"{folder}: mask_token_id={config.mask_token_id} decodes to {text!r}, which is no mask token "
            f"({', '.join(mask_tokens)}); config.json and the tokenizer do not belong together."
        )
