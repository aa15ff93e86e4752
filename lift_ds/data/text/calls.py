"""How a chat template takes the arguments of tool calls: as objects, or only as JSON text."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from .objects import with_function
from .turns import Message

WORDS = {"wordofkey": "wordofvalue"}
FUNCTION = {"name": "wordofname", "arguments": WORDS}
PROBE: tuple[Message, Message] = (
    {"role": "user", "content": "a"},
    # Mistral's templates want ids of nine characters
    {"role": "assistant", "content": "", "tool_calls": [{"id": "abcdefgh1", "type": "function", "function": FUNCTION}]},
)


def needs_text(render: Callable[[Sequence[Message]], str]) -> bool:
    """Whether a template raises of arguments that are an object, or writes them as Python does, and takes JSON text.

    Args:
        render: Renders messages.
    """

    def is_written(messages: Sequence[Message]) -> bool:
        try:
            text = render(messages)
        except Exception:  # templates raise what they like
            return False
        return "wordofname" in text and "wordofvalue" in text and str(WORDS) not in text

    return not is_written(PROBE) and is_written([with_text(message) for message in PROBE])


def with_text(message: Message) -> Message:
    """A message with its calls' arguments as JSON text."""
    if "tool_calls" not in message:
        return message
    return message | {"tool_calls": [with_function(call, as_text) for call in message["tool_calls"]]}


def as_text(function: dict[str, Any]) -> dict[str, Any]:
    """A function with its arguments as JSON text."""
    return function | {"arguments": json.dumps(function["arguments"], ensure_ascii=False)}
