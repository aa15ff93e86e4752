"""Conversations as tokens, with the response marked.

What is learned comes from rendered prefixes: the text that the template adds when one more assistant turn is appended,
between the header that invites it and the header of the next turn. Prompts and targets are tokenised apart, as they
are when the model is used, so no token spans the border.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from .records import Conversation

PadTargets = Literal["none", "one_eos", "all"]
TrainOn = Literal["all", "last"]


class TooLongError(ValueError):
    """A row is longer than the limit; `data.on_long` decides what happens."""


@dataclass(frozen=True)
class Tokens:
    """Token ids (length,) with the masks of `data.batch.Document`."""

    ids: np.ndarray
    response_mask: np.ndarray
    filler_mask: np.ndarray


class ChatEncoder:
    """Renders, tokenises and marks conversations.

    Args:
        tokenizer: A tokenizer with a chat template (plain text needs none).
        end_token_id: Id of the end token, from the model's config.
        max_length: Most tokens of a document.
        pad_targets: `none` ends with the template's own end of turn, `one_eos` adds the end token once and learns it,
            `all` fills the last response up to a multiple of `pad_to_multiple` with learned end tokens.
        pad_to_multiple: See `pad_targets`; in tokens.
        train_on: Learn every assistant turn, or the last one only.
        truncate: Cut rows that are too long instead of raising `TooLongError`.
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
    ) -> None:
        """Stores the settings and finds out how the template invites an answer."""
        self.tokenizer = tokenizer
        self.end_token_id = end_token_id
        self.max_length = max_length
        self.pad_targets = pad_targets
        self.pad_to_multiple = pad_to_multiple
        self.train_on = train_on
        self.truncate = truncate
        self.invitation = find_invitation(tokenizer) if tokenizer.chat_template else ""

    def answer_text(self, ids: list[int]) -> str:
        """Text of generated ids before the first special token: the end of the turn or of the answer."""
        special = {token_id for token_id, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        stop = next((place for place, token_id in enumerate(ids) if token_id in special), len(ids))
        return str(self.tokenizer.decode(ids[:stop]))

    def prompt_ids(self, messages: list[dict[str, str]]) -> list[int]:
        """Token ids of a conversation that the assistant is to continue."""
        return self.tokenizer(self.render(messages, invite=True), add_special_tokens=False).input_ids

    def render(self, messages: list[dict[str, str]] | tuple[dict[str, str], ...], invite: bool) -> str:
        """Text of the messages, with or without the assistant's header at the end, whatever the template's habit."""
        text = str(self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=invite))
        if invite:
            return text
        return text.removesuffix(self.invitation) if messages[-1]["role"] == "assistant" else text

    def encode(self, conversation: Conversation, where: str) -> Tokens:
        """Tokens of one conversation.

        Args:
            conversation: Messages that end with the assistant's, or plain text.
            where: File and line, for messages.

        Raises:
            TooLongError: It has more than `max_length` tokens and is not cut, or its prompt alone is too long.
            ValueError: The template changes earlier turns when a turn is added.
        """
        if conversation.text is not None:
            segments = [(conversation.text, True)]
        else:
            segments = self.segments(conversation.messages, where)
        encoded = self.tokenizer([text for text, _ in segments], add_special_tokens=False).input_ids
        ids = [token for part in encoded for token in part]
        response = [learned for part, (_, learned) in zip(encoded, segments, strict=True) for _ in part]
        end = self.end_tokens(len(encoded[-1]))
        num_end = len(end)
        num_filler = max(num_end - 1, 0)
        ids, response = ids + end, response + [True] * num_end
        filler = [False] * (len(ids) - num_filler) + [True] * num_filler
        if len(ids) > self.max_length:
            ids, response, filler = self.shorten(ids, response, filler, where)
        return Tokens(np.array(ids, dtype=np.int64), np.array(response, dtype=bool), np.array(filler, dtype=bool))

    def segments(self, messages: tuple[dict[str, str], ...], where: str) -> list[tuple[str, bool]]:
        """(text, learned) pieces of a chat, from rendered prefixes."""
        answers = [place for place, turn in enumerate(messages) if turn["role"] == "assistant"]
        learned = answers if self.train_on == "all" else answers[-1:]
        pieces, done = [], ""
        for place in learned:
            before = self.render(messages[:place], invite=True)
            after = self.render(messages[: place + 1], invite=False)
            if not before.startswith(done) or not after.startswith(before):
                raise ValueError(
                    f"{where}: the chat template rewrites earlier turns when turn {place + 1} is added, so the "
                    "response cannot be marked; use data.train_on=last or another template."
                )
            pieces += [(before[len(done) :], False), (after[len(before) :], True)]
            done = after
        return pieces

    def end_tokens(self, response_length: int) -> list[int]:
        """The end tokens that follow the last response, by `pad_targets`."""
        if self.pad_targets == "none":
            return []
        count = 1
        if self.pad_targets == "all":
            count += -(response_length + 1) % self.pad_to_multiple
        return [self.end_token_id] * count

    def shorten(
        self, ids: list[int], response: list[bool], filler: list[bool], where: str
    ) -> tuple[list[int], list[bool], list[bool]]:
        """The first `max_length` tokens, where cutting is allowed and leaves something to learn."""
        limit = self.max_length
        prompt_length = response.index(True) if True in response else len(ids)
        if prompt_length >= limit:
            raise TooLongError(f"{where}: the prompt alone has {prompt_length} tokens; data.max_length is {limit}.")
        if not self.truncate:
            raise TooLongError(
                f"{where}: {len(ids)} tokens, more than data.max_length={limit}. "
                "Raise it, or set data.on_long to skip or truncate."
            )
        return ids[:limit], response[:limit], filler[:limit]


def find_invitation(tokenizer: PreTrainedTokenizerBase) -> str:
    """The header that a template appends to invite the assistant's turn.

    Some templates (LLaDA's) append it always, whatever `add_generation_prompt` says. It is then what follows the end
    of turn after the last message; the end of turn is what precedes the known header of a user's turn.
    """

    def render(roles: str, invite: bool) -> str:
        names = {"u": "user", "a": "assistant"}
        turns = [{"role": names[role], "content": f"<{place}>"} for place, role in enumerate(roles)]
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=invite))

    invited, plain = render("u", True), render("u", False)
    if invited != plain:
        return invited[len(plain) :]
    after_user = invited.split("<0>")[1]
    user_to_assistant = render("ua", False).split("<0>")[1].split("<1>")[0]
    if after_user != user_to_assistant:
        return ""
    after_answer_then_user = render("uau", False).split("<1>")[1].split("<2>")[0]
    start_then_user = invited.split("<0>")[0]
    end_of_turn = common_prefix_tokens(tokenizer, after_user, after_answer_then_user, start_then_user)
    return after_user[len(end_of_turn) :]


def common_prefix_tokens(tokenizer: PreTrainedTokenizerBase, end_and_invite: str, end_and_user: str, start: str) -> str:
    """The end of turn: `end_and_user` without the user's header, which it shares, token by token, with `start`."""
    end_ids = tokenizer(end_and_user, add_special_tokens=False).input_ids
    start_ids = tokenizer(start, add_special_tokens=False).input_ids
    while end_ids and start_ids and end_ids[-1] == start_ids[-1]:
        end_ids.pop()
        start_ids.pop()
    end_of_turn = str(tokenizer.decode(end_ids))
    assert end_and_invite.startswith(end_of_turn), (end_and_invite, end_of_turn)
    return end_of_turn
