"""Chats as text: rendered by their template, and cut where the assistant's turns begin and end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from transformers import PreTrainedTokenizerBase

from .ids import TextTokenizer
from .shapes import Messages, Piece, Render, watch_template
from .templates import TEMPLATES

TrainOn = Literal["all", "last"]


class ChatRenderer:
    """Renders chats and splits them into what is learned and what is not.

    Args:
        tokenizer: Has the chat template; without one, every chat is an error.
        text: The same tokenizer's texts; keeps look-alikes of special tokens apart.
        train_on: Learn every assistant turn, or the last one only.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, text: TextTokenizer, train_on: TrainOn) -> None:
        """Finds out how the template invites an answer."""
        self.tokenizer, self.text, self.train_on = tokenizer, text, train_on
        self.invitation = find_invitation(tokenizer) if tokenizer.chat_template else ""
        self._shapes: dict[tuple[str, ...], list[Piece] | None] = {}

    def marked(self, messages: Messages) -> Messages:
        """The messages with what looks like a special token enclosed, so that it stays text."""
        return [{**message, "content": self.text.marked(message["content"])} for message in messages]

    def render(self, messages: Messages, invite: bool) -> str:
        """Text of the messages, with or without the assistant's header at the end, whatever the template's habit."""
        text = str(self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=invite))
        if invite:
            return text
        return text.removesuffix(self.invitation) if messages[-1]["role"] == "assistant" else text

    def segments(self, messages: Messages, where: str) -> list[tuple[str, bool]]:
        """(text, learned) pieces of a chat: filled into what is known of its shape, or rendered.

        The first conversation of a shape is done both ways, and the shape is dropped where they differ.
        """
        if not self.tokenizer.chat_template:
            raise ValueError(
                f"{where}: a chat, but the tokenizer has no chat template; name the model's: data.chat_template="
                f"{' | '.join(TEMPLATES)}, or the path of a jinja file."
            )
        messages = self.marked(messages)
        roles = tuple([message["role"] for message in messages])
        if roles not in self._shapes:
            rendered = self.rendered_segments(messages, where)
            pieces = self.watch_shape(roles)
            is_same = pieces is not None and [(piece.fill(messages), piece.is_learned) for piece in pieces] == rendered
            self._shapes[roles] = pieces if is_same else None
        shape = self._shapes[roles]
        if shape is None or any(len(message) != 2 for message in messages):
            return self.rendered_segments(messages, where)
        return [(piece.fill(messages), piece.is_learned) for piece in shape]

    def watch_shape(self, roles: tuple[str, ...]) -> list[Piece] | None:
        """The pieces of every conversation with these roles, if the template is regular."""

        def split(render: Render) -> list[tuple[str, bool]]:
            def strip_invitation(count: int, invite: bool) -> str:
                text = render(count, invite)
                return text if invite else text.removesuffix(self.invitation)

            return split_at_answers(strip_invitation, self.learned_places(roles), "a template's shape")

        source = self.tokenizer.get_chat_template()
        return watch_template(source, self.tokenizer.special_tokens_map, roles, split)

    def learned_places(self, roles: Sequence[str]) -> list[int]:
        """Places of the assistant's turns that are learned."""
        answers = [turn for turn, role in enumerate(roles) if role == "assistant"]
        return answers if self.train_on == "all" else answers[-1:]

    def rendered_segments(self, messages: Messages, where: str) -> list[tuple[str, bool]]:
        """(text, learned) pieces of a chat, from rendered prefixes.

        Raises:
            ValueError: The template changes earlier turns when a turn is added.
        """

        def render(count: int, invite: bool) -> str:
            return self.render(messages[:count], invite)

        return split_at_answers(render, self.learned_places([message["role"] for message in messages]), where)


def split_at_answers(render: Render, learned_places: list[int], where: str) -> list[tuple[str, bool]]:
    """(text, learned) pieces of a chat.

    Args:
        render: (number of messages, invite) -> text of so many messages, with or without the next answer's header.
        learned_places: Places of the answers that are learned.
        where: File and line, for messages.

    Raises:
        ValueError: The template changes earlier turns when a turn is added.
    """
    pieces: list[tuple[str, bool]] = []
    done = ""
    for turn in learned_places:
        before, after = render(turn, True), render(turn + 1, False)
        if not before.startswith(done) or not after.startswith(before):
            raise ValueError(
                f"{where}: the chat template rewrites earlier turns when turn {turn + 1} is added, so the "
                "response cannot be marked; use data.train_on=last or another template."
            )
        pieces += [(before[len(done) :], False), (after[len(before) :], True)]
        done = after
    return pieces


def find_invitation(tokenizer: PreTrainedTokenizerBase) -> str:
    """The header that a template appends to invite the assistant's turn.

    Some templates (LLaDA's) append it always, whatever `add_generation_prompt` says. It is then what follows the end
    of turn after the last message; the end of turn is what precedes the known header of a user's turn.
    """

    def render(roles: str, invite: bool) -> str:
        names = {"u": "user", "a": "assistant"}
        turns = [{"role": names[role], "content": f"<{turn}>"} for turn, role in enumerate(roles)]
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
    for length in range(len(end_and_user) + 1):  # decoding would lose what a tokenizer normalises
        end_of_turn = end_and_user[:length]
        if tokenizer(end_of_turn, add_special_tokens=False).input_ids == end_ids:
            break
    assert end_and_invite.startswith(end_of_turn), (end_and_invite, end_of_turn)
    return end_of_turn
