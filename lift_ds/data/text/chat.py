"""Conversations as tokens, with the response marked.

What is learned comes from rendered prefixes: the text that the template adds when one more assistant turn is appended,
between the header that invites it and the header of the next turn. Prompts and targets are tokenised apart, as they
are when the model is used, so no token spans the border. What looks like a special token in a message stays text; see
`ids.TextTokenizer`. Plain text without messages is taken as its author rendered it, special tokens included.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import cached_property
from itertools import chain
from typing import Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from lift_ds.data.batch import Tokens

from .ids import TextTokenizer
from .objects import leaves_of
from .records import Conversation
from .rendering import ChatRenderer, TrainOn

PadTargets = Literal["none", "one_eos", "all"]


class TooLongError(ValueError):
    """A row is longer than the limit; `data.on_long` decides what happens."""


class ChatEncoder:
    """Renders, tokenises and marks conversations.

    Args:
        tokenizer: A tokenizer with a chat template (plain text needs none).
        pad_targets: `none` ends with the template's own end of turn, `one_eos` adds the end token once and learns it,
            `all` fills the last response up to a multiple of `pad_to_multiple` with learned end tokens.
        clock: Time that the template's clock shows; `None`: now.
        may_drop: Whether the template may leave out texts.
        start_token_id: Put before rows whose first token would be learned; `None` where a model can predict that token.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        end_token_id: int,
        max_length: int,
        pad_targets: PadTargets = "one_eos",
        pad_to_multiple: int = 1,
        train_on: TrainOn = "all",
        truncate: bool = False,
        start_token_id: int | None = None,
        clock: datetime | None = None,
        may_drop: bool = False,
    ) -> None:
        self.tokenizer = tokenizer
        self.end_token_id = end_token_id
        self.max_length = max_length
        self.pad_targets = pad_targets
        self.pad_to_multiple = pad_to_multiple
        self.truncate = truncate
        self.start_token_id = start_token_id
        self.text = TextTokenizer(tokenizer)
        self.renderer = ChatRenderer(tokenizer, self.text, train_on, clock, may_drop)

    @cached_property
    def num_ids(self) -> int:
        """One more than the highest token id that is known."""
        return 1 + max(self.end_token_id, *self.tokenizer.get_vocab().values())

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids of the tokenizer's special tokens."""
        tokens = self.tokenizer.added_tokens_decoder
        return frozenset(token_id for token_id, token in tokens.items() if token.special)

    def answer_ids(self, ids: list[int]) -> list[int]:
        """Generated ids before the first special token: the end of the turn or of the answer."""
        stop = next((index for index, token_id in enumerate(ids) if token_id in self.special_ids), len(ids))
        return ids[:stop]

    def answer_text(self, ids: list[int]) -> str:
        """Text of generated ids before the first special token."""
        return str(self.tokenizer.decode(self.answer_ids(ids)))

    def prompt_ids(
        self, messages: list[dict[str, str]], answer_prefix: str = "", where: str = "the prompt"
    ) -> list[int]:
        """Token ids of a conversation that the assistant is to continue, or to continue behind a prefix.

        Raises:
            ValueError: A text has a lone surrogate, or the template cannot render the messages or leaves out one of
                their texts; it begins with `where`.
        """
        try:
            return self.text.ids([self.renderer.prompt(messages) + answer_prefix])[0]
        except Exception as error:  # tokenizers and templates have their own
            raise _located(error, Conversation(tuple(messages)), where) from error

    def encode(self, conversation: Conversation, where: str) -> Tokens:
        """Tokens of one conversation that ends with the assistant's message, or of plain text.

        Raises:
            TooLongError: It has more than `max_length` tokens and is not cut, or its prompt alone is too long.
            ValueError: There is no template for a chat, the template raises, changes earlier turns when a turn is
                added or leaves out texts, or a text has a lone surrogate; the message begins with `where`.
        """
        (tokens,) = self.encode_batch([conversation], [where])
        if isinstance(tokens, Exception):
            raise tokens
        return tokens

    def encode_batch(self, conversations: Sequence[Conversation], wheres: Sequence[str]) -> list[Tokens | Exception]:
        """Of many conversations, tokenised in one call, the tokens of each, or the error that `encode` raises of it."""
        rows = [
            self._attempt_segments(conversation, where)
            for conversation, where in zip(conversations, wheres, strict=True)
        ]
        texts = [text for row in rows if not isinstance(row, Exception) for text, _ in row]
        try:
            parts = iter(self.text.ids(texts))
        except Exception as error:  # of one row at least; each alone shows which
            if len(rows) == 1:
                return [_located(error, conversations[0], wheres[0])]
            return [
                self.encode_batch([conversation], [where])[0]
                for conversation, where in zip(conversations, wheres, strict=True)
            ]
        encoded_rows: list[Tokens | Exception] = []
        for row, where in zip(rows, wheres, strict=True):
            if isinstance(row, Exception):
                encoded_rows.append(row)
                continue
            encoded = [next(parts) for _ in row]
            try:
                encoded_rows.append(self._assemble(encoded, [is_learned for _, is_learned in row], where))
            except TooLongError as error:
                encoded_rows.append(error)
        return encoded_rows

    def _attempt_segments(self, conversation: Conversation, where: str) -> list[tuple[str, bool]] | Exception:
        try:
            if conversation.text is None:
                return self.renderer.segments(conversation, where)
            self.text.refuse_marks(conversation.text)
            return [(conversation.text, True)]
        except Exception as error:  # templates raise what they like, and the other rows of the batch go on
            return _located(error, conversation, where)

    def _assemble(self, encoded: list[list[int]], learned: list[bool], where: str) -> Tokens:
        end = self._end_tokens(len(encoded[-1])) if learned[-1] else []  # a turn that is context may stand last
        first_is_learned = next((is_learned for part, is_learned in zip(encoded, learned, strict=True) if part), True)
        if self.start_token_id is not None and first_is_learned:
            encoded, learned = [[self.start_token_id], *encoded], [False, *learned]
        ids = np.array([*chain.from_iterable(encoded), *end], dtype=np.int64)
        response = np.repeat([*learned, True], [*map(len, encoded), len(end)])
        filler = np.arange(len(ids)) >= len(ids) - max(len(end) - 1, 0)
        return self.fit(Tokens(ids, response, filler), where)

    def _end_tokens(self, response_length: int) -> list[int]:
        if self.pad_targets == "none":
            return []
        count = 1
        if self.pad_targets == "all":
            count += -(response_length + 1) % self.pad_to_multiple
        return [self.end_token_id] * count

    def fit(self, tokens: Tokens, where: str) -> Tokens:
        """A row of at most `max_length` tokens; a longer one is cut where that is allowed and leaves a target.

        Raises:
            TooLongError: It is not.
        """
        length, limit = len(tokens.ids), self.max_length
        if length <= limit:
            return tokens
        prompt_length = int(tokens.response_mask.argmax()) if tokens.response_mask.any() else length
        if prompt_length >= limit:
            raise TooLongError(f"{where}: the prompt alone has {prompt_length} tokens; data.max_length is {limit}.")
        if not self.truncate:
            raise TooLongError(
                f"{where}: {length} tokens, more than data.max_length={limit}. "
                "Raise it, or set data.on_long to skip or truncate."
            )
        return Tokens(tokens.ids[:limit], tokens.response_mask[:limit], tokens.filler_mask[:limit])


def _named_texts(conversation: Conversation) -> Iterator[tuple[str, str]]:
    """Every text of a conversation, keys and those inside of calls and tools too, with what to call it."""
    if conversation.text is not None:
        yield "text 1 of 1", conversation.text
    count = len(conversation.messages)
    for number, message in enumerate(conversation.messages, start=1):
        yield f"text {number} of {count}", message["content"]
        for key, value in message.items():
            yield from ((f"{key!r} of message {number}", leaf) for leaf in leaves_of(value) if isinstance(leaf, str))
    yield from (("a tool", leaf) for leaf in leaves_of(conversation.tools) if isinstance(leaf, str))


def _located(error: Exception, conversation: Conversation, where: str) -> ValueError:
    """The error of a template or tokenizer with its place, or a clearer one where a text is no Unicode."""
    message = str(error) if str(error).startswith(where) else f"{where}: {type(error).__name__}: {error}"
    for name, text in _named_texts(conversation):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as cause:
            message = (
                f"{where}: {name} has the lone surrogate {text[cause.start]!r} at character {cause.start}, which is no "
                "text; remove it or repair the escape that made it."
            )
            break
    bad_row = ValueError(message)
    bad_row.__cause__ = error
    return bad_row
