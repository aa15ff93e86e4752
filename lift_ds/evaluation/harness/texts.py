"""Requests of tasks as token ids: contexts with continuations, whole texts, and chats."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from lift_ds.data.text.chat import ChatEncoder
from lift_ds.data.text.chat_format import ChatFormat

from .likelihood import Pair

Messages = list[dict[str, str]]


@dataclass
class Texts:
    """Encodes requests for one model.

    Args:
        encoder: The model's tokenizer and template.
        start_ids: What stands before a text without context: a shifted model cannot predict its first token else.
        max_length: Most tokens of a sequence.
        on_long: Refuse what is longer, or drop the beginning of its context, which is counted.
        chat_format: What the model was taught in.
    """

    encoder: ChatEncoder
    start_ids: tuple[int, ...]
    max_length: int
    on_long: Literal["error", "truncate"]
    chat_format: ChatFormat = field(default_factory=ChatFormat)
    num_truncated: int = field(default=0, init=False)

    def render(self, messages: Messages, invite: bool) -> str:
        """Text of a chat, in which look-alikes of special tokens stay text; the model's system text is put before it.

        Without `invite` to the assistant's turn, the last message is the beginning of the answer, which stays open.

        Raises:
            ValueError: The tokenizer has no chat template, or it leaves out a text.
        """
        if not self.encoder.tokenizer.chat_template:
            raise ValueError(
                "--apply_chat_template: the tokenizer has no chat template; name one with chat_template= in "
                "--model_args, or leave the flag away."
            )
        renderer = self.encoder.renderer
        messages = self.chat_format.messages(messages)
        if invite:
            return renderer.prompt(messages)
        return renderer.prompt(messages[:-1]) + str(renderer.marked_value(messages[-1]["content"]))

    def ids(self, text: str) -> tuple[int, ...]:
        """Token ids of a text; special tokens that its author wrote are themselves."""
        return tuple(self.encoder.text.ids([text])[0])

    def prompt(self, text: str, gen_length: int) -> tuple[int, ...]:
        """Ids of a prompt that leaves room for an answer; an empty one is an end token, after which a text may begin.

        Raises:
            ValueError: It does not, and nothing may be dropped.
        """
        ids = self.ids(text) or self.start_ids or (self.encoder.end_token_id,)
        return self._fit(ids, self.max_length - gen_length, f"gen_length={gen_length}")

    def pair(self, context: str, continuation: str) -> Pair:
        """Ids of a context and its continuation.

        They are tokenised together, as tasks expect, where that leaves the context's tokens alone, and apart where a
        token would span the border. A space at the context's end belongs to the continuation's first word.

        Raises:
            ValueError: They are too long together, and nothing may be dropped, or the continuation alone is.
        """
        stripped = context.rstrip(" ")
        continuation = context[len(stripped) :] + continuation
        before, whole = self.ids(stripped), self.ids(stripped + continuation)
        is_border = whole[: len(before)] == before
        target = whole[len(before) :] if is_border else self.ids(continuation)
        room = self.max_length - len(target)
        return Pair(self._fit(before or self.start_ids, room, f"a continuation of {len(target)}"), target)

    def windows(self, text: str) -> Iterator[Pair]:
        """A whole text as pairs: each token is in one continuation.

        The parts are as long as the model allows with one token before them; what room the last one leaves is filled
        with what stands before it.
        """
        ids = self.ids(text)
        step = self.max_length - 1
        for begin in range(0, len(ids), step):
            target = ids[begin : begin + step]
            context = (self.start_ids + ids[:begin])[-(self.max_length - len(target)) :]
            yield Pair(context, target)

    def _fit(self, ids: tuple[int, ...], room: int, beside: str) -> tuple[int, ...]:
        """The ids, or the end of them that has room; see `prompt` for its error."""
        if len(ids) <= room:
            return ids
        if self.on_long == "error" or room < 1:
            raise ValueError(
                f"a prompt of {len(ids)} tokens and {beside} are longer than the {self.max_length} tokens of a "
                "sequence; shorten one of them, ask for fewer examples (--num_fewshot), or set on_long=truncate in "
                "--model_args, which drops the beginning of prompts."
            )
        self.num_truncated += 1
        return ids[len(ids) - room :]
