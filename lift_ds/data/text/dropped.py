"""Texts of a conversation that its rendering lacks: some templates cut thoughts, system turns or tool calls."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from html import escape
from itertools import count
from math import isfinite
from typing import Any, NamedTuple

from .objects import with_function, with_leaves
from .turns import Message

THOUGHTS_REMEDY = "data.reasoning=think writes thoughts into the answer, before it"
TEMPLATE_REMEDY = "name a template that writes it: data.chat_template=FILE"

FIRST_NUMBER = 7_310_000  # numbers that nothing else has

Tools = Sequence[dict[str, Any]]


class Said(NamedTuple):
    """One text of a conversation: what it is, what helps where it is left out, and its message (`None`: of a tool)."""

    what: str
    text: str
    remedy: str
    turn: int | None = None
    is_content: bool = False


def texts_of(messages: Sequence[Message], tools: Tools) -> Iterator[Said]:
    """Everything that a conversation says, in its order; the tools first."""
    for tool in tools:
        yield Said("the tool", str(tool.get("function", tool).get("name", "")), TEMPLATE_REMEDY)
    for turn, message in enumerate(messages):
        of = f"of message {turn + 1},"
        if "reasoning_content" in message:
            yield Said(f"the thoughts {of}", message["reasoning_content"], THOUGHTS_REMEDY, turn)
        yield Said(f"the text {of}", message["content"], TEMPLATE_REMEDY, turn, is_content=True)
        for call in message.get("tool_calls", ()):
            function = call.get("function", call)
            yield Said(f"the tool call {of}", function["name"], TEMPLATE_REMEDY, turn)
            for leaf in _leaves_of(function["arguments"]):
                yield Said(f"an argument of the tool call {of}", str(leaf), TEMPLATE_REMEDY, turn)


def _is_leaf(value: Any) -> bool:
    """Whether templates write an argument as it is: a text or a number; true and NaN have several forms."""
    return isinstance(value, str) or (
        isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
    )


def _leaves_of(value: Any) -> Iterator[str | int | float]:
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _leaves_of(inner)
    elif _is_leaf(value):
        yield value


def find_dropped(messages: Sequence[Message], tools: Tools, rendered: str) -> Said | None:
    """The first text of a conversation that is not in its rendering; `None` where all are.

    Turns are looked for in their order, a system's text anywhere, and what one turn says in any order: some templates
    write calls before the text. White space does not count, and what a template writes with escapes counts as written.
    """
    rendering = _squeezed(rendered)
    start = place = 0
    turn = None
    for said in texts_of(messages, tools):
        if said.turn != turn:
            turn, start = said.turn, place
        is_ordered = turn is not None and messages[turn]["role"] != "system"
        end = _find_end(rendering, said.text, start if is_ordered else 0)
        if end is None:
            return said
        if is_ordered and said.is_content:
            place = end
    return None


def _squeezed(text: str) -> str:
    """A text without white space, which templates strip and add."""
    return "".join(text.split())


def _written_forms(text: str) -> Iterator[str]:
    """How templates write a text: as it is, in JSON, in a call between single quotes, in XML."""
    yield text
    as_json = json.dumps(text, ensure_ascii=False)[1:-1]
    yield as_json
    yield json.dumps(text)[1:-1]
    yield as_json.replace('\\"', '"').replace("'", "\\'")
    in_xml = escape(text, quote=False)
    yield in_xml
    yield in_xml.replace('"', "&quot;")
    yield in_xml.replace('"', "&#34;").replace("'", "&#39;")  # as jinja has it


def _find_end(rendering: str, text: str, start: int) -> int | None:
    """Where a text ends in a rendering, in one of its forms."""
    for written in _written_forms(text):
        wanted = _squeezed(written)
        found = rendering.find(wanted, start)
        if found >= 0:
            return found + len(wanted)
    return None


def form_of(messages: Sequence[Message], tools: Tools) -> str:
    """What conversations have in common whose texts alone differ."""
    turns = [
        (
            message["role"],
            sorted(key for key in message if message[key]),
            [
                with_leaves(call.get("function", call)["arguments"], lambda leaf: type(leaf).__name__)
                for call in message.get("tool_calls", ())
            ],
        )
        for message in messages
    ]
    return repr((len(tools), turns))


def find_unwritten(
    messages: Sequence[Message], tools: Tools, render: Callable[[list[Message], list[dict[str, Any]]], str]
) -> set[int]:
    """Which of a conversation's texts, by their places, the template never writes, as words show in their stead.

    A short text may stand in a rendering by chance; a word that nothing else has does not.
    """
    numbers = count()

    def word() -> str:
        return f"word{next(numbers)}of"

    def other_leaf(value: Any) -> Any:
        if isinstance(value, str):
            return word()
        return type(value)(FIRST_NUMBER + next(numbers)) if _is_leaf(value) else value

    def in_words(function: dict[str, Any]) -> dict[str, Any]:
        return {**function, "name": word(), "arguments": with_leaves(function["arguments"], other_leaf)}

    other_tools = [with_function(tool, lambda function: {**function, "name": word()}) for tool in tools]
    others: list[Message] = []
    for message in messages:
        other = message | {key: word() for key in ("content", "reasoning_content") if message.get(key)}
        if "tool_calls" in message:
            other["tool_calls"] = [with_function(call, in_words) for call in message["tool_calls"]]
        others.append(other)
    try:
        text = render(others, other_tools)
    except Exception:  # a template that looks for something in the texts; they themselves are looked for
        return set()
    return {place for place, said in enumerate(texts_of(others, other_tools)) if said.text not in text}
