"""How a chat template takes an assistant's tool calls: some only write them in one of several forms."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .turns import Message


@dataclass(frozen=True)
class CallForm:
    """What a template is given.

    Args:
        is_text: Arguments as JSON text, not as an object.
        is_none: No text beside the calls as `None`, not as an empty text.
    """

    is_text: bool = False
    is_none: bool = False

    def of(self, message: Message) -> Message:
        """A message in this form; the others stay as they are."""
        if "tool_calls" not in message or not (self.is_text or self.is_none):
            return message
        calls = message["tool_calls"]
        if self.is_text:
            calls = [
                call | {"function": as_text(call["function"])} if "function" in call else as_text(call)
                for call in calls
            ]
        return message | {"tool_calls": calls, "content": message["content"] or (None if self.is_none else "")}


def as_text(function: dict[str, Any]) -> dict[str, Any]:
    """A function with its arguments as JSON text."""
    return function | {"arguments": json.dumps(function["arguments"], ensure_ascii=False)}


# Objects first, as transformers has them; DeepSeek's templates need text, or none.
FORMS = (CallForm(), CallForm(is_none=True), CallForm(is_text=True), CallForm(is_text=True, is_none=True))
WORDS = {"wordofkey": "wordofvalue"}
AS_PYTHON = str(WORDS)


def find_form(render: Callable[[Sequence[Message]], str]) -> CallForm:
    """The first form in which a template writes a call, and not as Python writes objects; the usual one where none is.

    Args:
        render: Renders messages.
    """
    function = {"name": "wordofname", "arguments": WORDS}
    call = {"id": "abcdefgh1", "type": "function", "function": function}  # Mistral's want nine characters
    asked = {"role": "user", "content": "a"}
    called = {"role": "assistant", "content": "", "tool_calls": [call]}
    for form in FORMS:
        try:
            text = render([asked, form.of(called)])
        except Exception:  # templates raise what they like
            continue
        if "wordofname" in text and "wordofvalue" in text and AS_PYTHON not in text:
            return form
    return FORMS[0]
