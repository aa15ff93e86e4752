"""A bare sentencepiece model (`tokenizer.model`) as a tokenizer, with sentencepiece's own ids.

The conversion to a fast tokenizer in transformers 5 drops the model's normalisation and its space before the first
word, so the ids differ from those the model was trained with. Here sentencepiece itself encodes and decodes.
"""

from __future__ import annotations

from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor
from transformers import AddedToken
from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

TEMPLATE_FILE = "chat_template.jinja"


class SentencePieceTokenizer(SentencePieceBackend):
    """Unigram and BPE models of sentencepiece; their control symbols (`<s>`, `<|eot_id|>`) are special tokens."""

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Text of pieces: bytes that make up a character are joined, control symbols are written out."""
        is_control = [bool(self.sp_model.is_control(self.sp_model.piece_to_id(token))) for token in tokens]
        runs = groupby(zip(is_control, tokens, strict=True), key=itemgetter(0))
        pieces = [(control, [token for _, token in run]) for control, run in runs]
        return "".join("".join(run) if control else str(self.sp_model.decode(run)) for control, run in pieces)


def load_sentencepiece(folder: Path) -> SentencePieceTokenizer:
    """The tokenizer of a folder with a `tokenizer.model` and no other tokenizer file.

    Args:
        folder: May also have a `chat_template.jinja`.

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
    template = folder / TEMPLATE_FILE
    if template.is_file():
        named["chat_template"] = template.read_text(encoding="utf-8")
    tokenizer = SentencePieceTokenizer(vocab_file=str(path), **named)
    control = [model.id_to_piece(token_id) for token_id in range(len(model)) if model.is_control(token_id)]
    tokenizer.add_tokens([AddedToken(piece, normalized=False, special=True) for piece in control], special_tokens=True)
    return tokenizer
