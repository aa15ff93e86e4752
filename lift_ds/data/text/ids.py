"""Texts as token ids: many in one call, and texts of people kept apart from the control tokens of a template."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import takewhile

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

# Noncharacters of Unicode; they enclose what looks like a control token but is a person's text.
START, END = "\ufdd0", "\ufdd1"


class TextTokenizer:
    """The ids of texts, as `tokenizer(texts, add_special_tokens=False)` gives them, without its detours.

    A message may contain the text of a special token, `<|eot_id|>` for example. Hugging Face turns it into that token
    by default, so that a message could end its own turn. Here it stays text (as transformers' newer
    `sanitize_control_tokens` does): `marked` encloses it before a template is rendered, and `ids` encodes what lies
    between the template's own tokens as if the tokenizer had no special ones. Only tokens flagged as special are held
    back; `<think>` and its like are ordinary added tokens in the tokenizers that have them, and stay tokens.

    Fast tokenizers encode a batch in one call; others text by text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.special_ids = {
            token.content: token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special
        }
        alternatives = "|".join(re.escape(text) for text in sorted(self.special_ids, key=len, reverse=True)) or "(?!)"
        self._special = re.compile(alternatives)
        first, last = min(self.special_ids, default=""), max(self.special_ids, default="")
        shared = takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
        self._common_start = "".join(character for character, _ in shared)
        self._special_or_marked = re.compile(f"{START}({alternatives}){END}|({alternatives})")
        self._backend: Tokenizer | None = tokenizer.backend_tokenizer if tokenizer.is_fast else None
        self._without_special: Tokenizer | None = None
        if self._backend is not None:
            self._backend.no_truncation()
            self._backend.no_padding()

    def marked(self, text: str) -> str:
        """The text with its look-alikes of special tokens enclosed in `START` and `END`.

        Raises:
            ValueError: It uses these noncharacters itself.
        """
        self.refuse_marks(text)
        if not self.special_ids or self._common_start not in text:
            return text
        return self._special.sub(f"{START}\\g<0>{END}", text)

    def refuse_marks(self, text: str) -> None:
        """Refuses, with a ValueError, a person's text that has the characters of `marked` itself."""
        if START in text or END in text:
            raise ValueError(
                f"a text has U+{ord(START):X} or U+{ord(END):X}, which are no characters (Unicode keeps them for "
                "programs' own use); remove them."
            )

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of rendered texts, marked or not; no tokens are put around them.

        Raises:
            Exception: Whatever the tokenizer raises, of texts with lone surrogates for example.
        """
        ids = self._plain_ids(texts)
        for index, text in enumerate(texts):
            if START in text:
                ids[index] = self.marked_ids(text)
        return ids

    def _plain_ids(self, texts: Sequence[str]) -> list[list[int]]:
        if self._backend is not None:
            return [encoding.ids for encoding in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)]
        return list(self.tokenizer(list(texts), add_special_tokens=False).input_ids) if texts else []

    def marked_ids(self, text: str) -> list[int]:
        """Token ids of a text in which enclosed special tokens are text, and the others are themselves."""
        ids: list[int] = []
        run, done = "", 0
        for match in self._special_or_marked.finditer(text):
            run += text[done : match.start()] + (match[1] or "")
            done = match.end()
            if match[2] is not None:
                ids += [*self._ids_without_special(run), self.special_ids[match[2]]]
                run = ""
        return ids + self._ids_without_special(run + text[done:])

    def _ids_without_special(self, text: str) -> list[int]:
        if self._backend is None:
            return list(self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))
        if self._without_special is None:  # a copy: the switch is the tokenizer's, and others are using that one
            self._without_special = Tokenizer.from_str(self._backend.to_str())
            self._without_special.encode_special_tokens = True
        return list(self._without_special.encode(text, add_special_tokens=False).ids)
