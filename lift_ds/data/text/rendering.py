"""Chats as text: rendered by their template, and cut where the assistant's turns begin and end."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import cached_property
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from .dropped import TEMPLATE_REMEDY, THOUGHTS_REMEDY, find_dropped, find_unwritten, form_of, texts_of
from .ids import TextTokenizer
from .records import Conversation
from .shapes import Messages, Piece, Render, watch_template
from .templates import TEMPLATES, find_invitation, needs_text, stop_clock, with_text
from .turns import PASSED_ON, Message, with_thoughts_inside

OTHER_TEMPLATE = "name a template that does not: data.chat_template=FILE"
TrainOn = Literal["all", "last"]
Shape = tuple[tuple[str, ...], frozenset[int]]  # roles, and places of the assistant's turns that are not learned


class ChatRenderer:
    """Renders chats and splits them into what is learned and what is not.

    Args:
        tokenizer: Has the chat template; without one, every chat is an error.
        clock: Time that the template's clock shows; `None`: now, which stands still from here on.
        may_drop: Whether the template may leave out texts.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        text: TextTokenizer,
        train_on: TrainOn,
        clock: datetime | None = None,
        may_drop: bool = False,
    ) -> None:
        """Stops the template's clock; a ValueError where the template would give a row other tokens each time."""
        self.tokenizer, self.text, self.train_on, self.may_drop = tokenizer, text, train_on, may_drop
        self.clock = clock or datetime.now()
        self.template = stop_clock(tokenizer.get_chat_template(), self.clock) if tokenizer.chat_template else ""
        self._shapes: dict[Shape, list[Piece] | None] = {}
        self._needs_text: dict[bool, bool] = {}  # whether arguments must be text, by whether there are tools
        self._unwritten: dict[str, set[int]] = {}

    @cached_property
    def invitation(self) -> str:
        """How the template invites an answer; looked for when a chat is read, since texts and tokens need none.

        Raises:
            ValueError: The template cannot render a plain chat.
        """
        return find_invitation(self.tokenizer, self.template)

    def _marked(self, messages: Messages) -> list[Message]:
        return [
            {key: value if key == "role" else self.marked_value(value) for key, value in message.items()}
            for message in messages
        ]

    def marked_value(self, value: Any) -> Any:
        """Texts, in objects and lists too, with what looks like a special token enclosed."""
        if isinstance(value, str):
            return self.text.marked(value)
        if isinstance(value, dict):
            return {self.marked_value(key): self.marked_value(inner) for key, inner in value.items()}
        return [self.marked_value(inner) for inner in value] if isinstance(value, list | tuple) else value

    def render(self, messages: Messages, invite: bool, tools: Sequence[dict[str, Any]] = ()) -> str:
        """Text of the messages, with or without the assistant's header at the end, whatever the template's habit."""
        if any("tool_calls" in message for message in messages):
            has_tools = bool(tools)
            if has_tools not in self._needs_text:
                self._needs_text[has_tools] = needs_text(lambda probe: self.render_as_they_are(probe, False, tools))
            if self._needs_text[has_tools]:
                messages = [with_text(message) for message in messages]
        return self.render_as_they_are(messages, invite, tools)

    def render_as_they_are(self, messages: Messages, invite: bool, tools: Sequence[dict[str, Any]]) -> str:
        """As `render`, with arguments of calls as they are."""
        template = self.template
        if tools and isinstance(self.tokenizer.chat_template, dict):  # some have another template for chats with tools
            template = stop_clock(self.tokenizer.get_chat_template(tools=list(tools)), self.clock)
        aliased = [
            {"thinking": message["reasoning_content"], **message} if "reasoning_content" in message else message
            for message in messages
        ]
        text = str(
            self.tokenizer.apply_chat_template(
                aliased,
                tools=list(tools) or None,
                chat_template=template,
                tokenize=False,
                add_generation_prompt=invite,
            )
        )
        if invite:
            return text
        return text.removesuffix(self.invitation) if messages[-1]["role"] == "assistant" else text

    def prompt(self, messages: Messages) -> str:
        """Text of messages that the assistant is to continue.

        Raises:
            ValueError: The template leaves out one of their texts.
        """
        marked = self._marked(messages)
        rendered = self.render(marked, invite=True)
        self._refuse_dropped(marked, (), rendered, "the prompt")
        return rendered

    def segments(self, conversation: Conversation, where: str) -> list[tuple[str, bool]]:
        """(text, learned) pieces of a chat: filled into what is known of its shape, or rendered.

        The first conversation of a shape is done both ways, and the shape is dropped where they differ.

        Raises:
            ValueError: There is no template, or it changes earlier turns when a turn is added, or leaves out texts.
        """
        if not self.template:
            raise ValueError(
                f"{where}: a chat, but the tokenizer has no chat template; name the model's: data.chat_template="
                f"{' | '.join(TEMPLATES)}, or the path of a jinja file."
            )
        messages = self._marked(conversation.messages)
        if conversation.tools or any(len(message) != 2 for message in messages):
            return self._rendered_segments(messages, conversation, where)
        key = (tuple([message["role"] for message in messages]), conversation.context)
        if key not in self._shapes:
            rendered = self._rendered_segments(messages, conversation, where)
            pieces = self._watch_shape(*key)
            is_same = pieces is not None and [(piece.fill(messages), piece.is_learned) for piece in pieces] == rendered
            self._shapes[key] = pieces if is_same else None
        shape = self._shapes[key]
        if shape is None:
            return self._rendered_segments(messages, conversation, where)
        return [(piece.fill(messages), piece.is_learned) for piece in shape]

    def _watch_shape(self, roles: tuple[str, ...], context: frozenset[int]) -> list[Piece] | None:
        """The pieces of every conversation of a shape, if the template is regular and writes all of its texts."""

        def split(render: Render) -> list[tuple[str, bool]]:
            def strip_invitation(count: int, invite: bool) -> str:
                text = render(count, invite)
                return text if invite else text.removesuffix(self.invitation)

            return split_at_answers(strip_invitation, self._learned_places(roles, context), len(roles), "a shape")

        pieces = watch_template(self.template, self.tokenizer.special_tokens_map, roles, split)
        written = {turn for piece in pieces or () for turn, _ in piece.fields}
        return pieces if len(written) == len(roles) or self.may_drop else None

    def _learned_places(self, roles: Sequence[str], context: frozenset[int]) -> list[int]:
        answers = [turn for turn, role in enumerate(roles) if role == "assistant"]
        return [turn for turn in (answers if self.train_on == "all" else answers[-1:]) if turn not in context]

    def _rendered_segments(
        self, messages: list[Message], conversation: Conversation, where: str
    ) -> list[tuple[str, bool]]:
        tools = [self.marked_value(tool) for tool in conversation.tools]
        roles = [message["role"] for message in messages]
        learned = self._learned_places(roles, conversation.context)
        if not learned:
            raise ValueError(f"{where}: the last turn is not learned, and data.train_on=last; use data.train_on=all.")

        def render(count: int, invite: bool) -> str:
            return self.render(messages[:count], invite, tools)

        pieces = split_at_answers(render, learned, len(messages), where)
        self._refuse_dropped(messages, tools, "".join(text for text, _ in pieces), where)
        for turn in learned:
            self._refuse_silent(messages[: turn + 1], tools, where)
        return pieces

    def _refuse_silent(self, messages: list[Message], tools: Sequence[dict[str, Any]], where: str) -> None:
        """Refuses an answer, the last message, of which the template writes nothing: silence would be learned."""
        *before, answer = messages
        if not self.may_drop and (len(answer) == 2 or answer["content"].strip()):
            return  # what is said is looked for
        try:
            silence = self.render([*before, {"role": "assistant", "content": ""}], False, tools)
        except Exception:  # the template refuses silence itself
            return
        if self.render(messages, False, tools) == silence:
            raise ValueError(
                f"{where}: the chat template writes nothing of message {len(messages)}, so that silence would be "
                "learned; name a template that writes it: data.chat_template=FILE."
            )

    def _refuse_dropped(
        self, messages: list[Message], tools: Sequence[dict[str, Any]], rendered: str, where: str
    ) -> None:
        if self.may_drop:
            return
        form = form_of(messages, tools)
        if form not in self._unwritten:
            self._unwritten[form] = find_unwritten(
                messages, tools, lambda *words: self.render(words[0], False, words[1])
            )
        unwritten = self._unwritten[form]
        never = (
            said for place, said in enumerate(texts_of(messages, tools)) if place in unwritten and said.text.strip()
        )
        dropped = next(never, None) or find_dropped(messages, tools, rendered)
        if dropped is None:
            return
        remedy = dropped.remedy
        if remedy is THOUGHTS_REMEDY:
            inside = [with_thoughts_inside(message) for message in messages]
            cut = find_dropped(inside, tools, self.render(inside, False, tools))
            remedy = THOUGHTS_REMEDY if cut is None else TEMPLATE_REMEDY
        raise ValueError(
            f"{where}: the chat template leaves out {dropped.what} {dropped.text[:60]!r}; {remedy}. Where that is "
            "meant: data.dropped_text=allow."
        )

    @cached_property
    def written_keys(self) -> frozenset[str]:
        """Which of the keys that messages may have beside their text the template writes."""
        return frozenset(key for key in PASSED_ON if any(self._writes(key, role) for role in ("user", "tool")))

    def _writes(self, key: str, role: str) -> bool:
        """Whether the template writes a key of a message, as a word that nothing else has shows."""
        first, last = {"role": "user", "content": "a"}, {"role": role, "content": "b", key: "wordof" + key}
        try:
            return bool(self.template) and "wordof" + key in self.render([first, last][role == "user" :], invite=False)
        except Exception:  # a template that has no such turns
            return False


def split_at_answers(
    render: Render, learned_places: list[int], num_messages: int, where: str
) -> list[tuple[str, bool]]:
    """(text, learned) pieces of a chat.

    Args:
        render: (number of messages, invite) -> text of so many messages, with or without the next answer's header.
        learned_places: Places of the answers that are learned.
        num_messages: How many messages there are; those after the last learned one are context.
        where: File and line, for messages.

    Raises:
        ValueError: The template changes earlier turns when a turn is added, or invites an answer with what it does not
            write before this one.
    """
    pieces: list[tuple[str, bool]] = []
    done = ""
    for turn in learned_places:
        before, after = render(turn, True), render(turn + 1, False)
        if not (before.startswith(done) and after.startswith(before)):
            asked = render(turn, False)
            if before.startswith(done) and before.startswith(asked) and after.startswith(asked):
                raise ValueError(
                    f"{where}: the chat template invites an answer with {before[len(asked) :]!r}, but begins message "
                    f"{turn + 1} with {after[len(asked) :][:60]!r}, so the answer would not be one to that invitation; "
                    f"{OTHER_TEMPLATE}."
                )
            raise ValueError(_rewriting(render, learned_places, num_messages, turn, where))
        pieces += [(before[len(done) :], False), (after[len(before) :], True)]
        done = after
    if learned_places[-1] + 1 < num_messages:
        whole = render(num_messages, False)
        if not whole.startswith(done):
            raise ValueError(_rewriting(render, learned_places, num_messages, num_messages - 1, where))
        pieces.append((whole[len(done) :], False))
    return pieces


def _rewriting(render: Render, learned_places: list[int], num_messages: int, turn: int, where: str) -> str:
    remedy = OTHER_TEMPLATE
    if len(learned_places) > 1 and learned_places[-1] == num_messages - 1:
        try:
            split_at_answers(render, learned_places[-1:], num_messages, where)
            remedy = f"use data.train_on=last, or {remedy}"
        except Exception:  # a template raises what it likes; this remedy does not help
            pass
    return (
        f"{where}: the chat template rewrites earlier turns when turn {turn + 1} is added, so the response cannot be "
        f"marked; {remedy}."
    )
