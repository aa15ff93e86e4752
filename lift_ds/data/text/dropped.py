"""Texts of a conversation that its rendering lacks: some templates cut thoughts, system turns or tool calls."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from .turns import Message

THOUGHTS_REMEDY = "data.reasoning=think writes thoughts into the answer, before it"
TEMPLATE_REMEDY = "name a template that writes it: data.chat_template=FILE"


def squeezed(text: str) -> str:
    """A text without white space, which templates strip and add."""
    return "".join(text.split())


def find_dropped(messages: Sequence[Message], tools: Sequence[dict[str, Any]], rendered: str) -> str | None:
    """The first text of a conversation that is not in its rendering, in words, with what to do; `None` where all are.

    Turns are looked for in their order, a system's text anywhere. What a template writes as JSON counts as written.

    Args:
        messages: As the template had them.
        tools: As the template had them.
        rendered: What it wrote.
    """
    rendering = squeezed(rendered)
    for tool in tools:
        name = str(tool.get("function", tool).get("name", ""))
        if squeezed(name) not in rendering:
            return f"the tool {name!r}; {TEMPLATE_REMEDY}"
    place = 0
    for number, message in enumerate(messages, start=1):
        start = 0 if message["role"] == "system" else place
        for what, text, remedy in texts_of(message):
            end = find_end(rendering, text, start)
            if end is None:
                return f"{what} of message {number}, {text[:60]!r}; {remedy}"
            if what == "the text" and message["role"] != "system":
                place = end
    return None


def texts_of(message: Message) -> Iterator[tuple[str, str, str]]:
    """Everything that a message says, each with what it is and what helps where it is left out."""
    if "reasoning_content" in message:
        yield "the thoughts", message["reasoning_content"], THOUGHTS_REMEDY
    yield "the text", message["content"], TEMPLATE_REMEDY
    for call in message.get("tool_calls", ()):
        function = call.get("function", call)
        yield "the tool call", function["name"], TEMPLATE_REMEDY
        for value in function["arguments"].values():
            if isinstance(value, str):
                yield "an argument of the tool call", value, TEMPLATE_REMEDY


def find_end(rendering: str, text: str, start: int) -> int | None:
    """Where a text ends in what was rendered, plain or as JSON; `None` where it is not there."""
    for written in (text, json.dumps(text, ensure_ascii=False)[1:-1]):
        wanted = squeezed(written)
        found = rendering.find(wanted, start)
        if found >= 0:
            return found + len(wanted)
    return None
