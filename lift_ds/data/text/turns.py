"""Messages of people's formats as chat templates read them: role, text, thoughts, tool calls; and which are learned.

A key that changes what is said or learned is read, or refused by name; what else a message holds is left out and said
(`unused`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from lift_ds.data.settings import ColumnsConfig, Reasoning

from .objects import as_calls, as_list, holds_something

Message = dict[str, Any]

ROLES = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "system": "system",
    "developer": "system",
    "tool": "tool",
    "observation": "tool",
}
THOUGHTS = ("reasoning_content", "thinking", "reasoning")
LEARNED = frozenset(("weight", "train", "trainable"))
TURN_LEARNED = LEARNED | {"loss"}  # of a row, it is rather a number that was measured
PASSED_ON = ("name", "tool_call_id")
REFUSED_KEYS = {
    "function_call",
    "functions",
    "tools",
    "refusal",
    "image",
    "image_url",
    "images",
    "audio",
    "audios",
    "video",
    "videos",
    "documents",
}
CHAT_KEYS = {"system", "system_prompt", "tools", "tool_calls", "history", *THOUGHTS, *REFUSED_KEYS}  # of a row
MESSAGE_KEYS = (("role", "content"), ("from", "value"))
TEXT_BLOCKS = ("text", "input_text", "output_text")


@dataclass(frozen=True)
class RowRules:
    """What the config says of the text of every row: `data.system`, `data.reasoning` and `data.ignore`."""

    system: str | None = None
    reasoning: Reasoning = "template"
    ignore: frozenset[str] = field(default_factory=frozenset)


def refuse_keys(values: dict[str, Any], refused: Iterable[str], ignore: frozenset[str], where: str) -> None:
    """Refuses keys that would change what is said or learned, and are not read.

    Raises:
        ValueError: One holds something.
    """
    for key in refused:
        if key in values and key not in ignore and holds_something(values[key]):
            raise ValueError(
                f"{where}: key {key!r} holds {str(values[key])[:40]!r}, which would not be used. Write it into the "
                f"text, or leave it out knowingly: data.ignore='[{key}]'."
            )


def read_turn(turn: Any, columns: ColumnsConfig, rules: RowRules, where: str) -> tuple[Message, bool]:
    """One message as templates read it, and whether it is an assistant's turn that is learned.

    Raises:
        ValueError: It is no message, or says something that would be lost.
    """
    has_text = isinstance(turn, dict) and (columns.content in turn or "tool_calls" in turn)
    if not has_text or columns.role not in turn:
        raise ValueError(f"{where}: a message without {columns.role!r} and {columns.content!r}: {str(turn)[:80]}")
    role = ROLES.get(turn[columns.role]) if isinstance(turn[columns.role], str) else None
    if role is None:
        raise ValueError(f"{where}: message role {turn[columns.role]!r}; allowed roles: {sorted(ROLES)}")
    if len(turn) == 2 and isinstance(turn[columns.content], str):  # nearly all
        message: Message = {"role": role, "content": turn[columns.content]}
        is_learned = role == "assistant"
    else:
        message, is_learned = _read_keys(turn, role, columns, rules, where)
    if (
        role == "assistant"
        and not message["content"].strip()
        and not {"tool_calls", "reasoning_content"} & set(message)
    ):
        raise ValueError(f"{where}: an assistant's turn without text; remove the row or the turn.")
    return message, is_learned


def _read_keys(turn: Message, role: str, columns: ColumnsConfig, rules: RowRules, where: str) -> tuple[Message, bool]:
    kept = {key: value for key, value in turn.items() if key not in rules.ignore and holds_something(value)}
    refuse_keys(kept, REFUSED_KEYS, rules.ignore, where)
    calls = as_calls(kept["tool_calls"], where) if "tool_calls" in kept else []
    content = turn.get(columns.content)
    text = (
        ""
        if content is None and (calls or role == "assistant")
        else _text_of(content, f"{where}: a {role}'s message", rules.ignore)
    )
    thoughts = [key for key in THOUGHTS if key in kept]
    message: Message = {"role": role, "content": text}
    if calls:
        message["tool_calls"] = calls
    if thoughts:
        _place_thoughts(message, [kept[key] for key in thoughts], rules.reasoning, f"{where}: {' and '.join(thoughts)}")
    message |= {key: str(kept[key]) for key in PASSED_ON if key in kept}
    if role != "assistant" and (calls or thoughts):
        raise ValueError(f"{where}: a {role}'s message has {(thoughts or ['tool_calls'])[0]}; only an assistant's may.")
    return message, _learns(turn, role, rules.ignore, where)


def _place_thoughts(message: Message, found: list[Any], reasoning: Reasoning, where: str) -> None:
    thoughts = found[0]
    if not isinstance(thoughts, str) or any(other != thoughts for other in found):
        raise ValueError(f"{where} must hold one text; remove a key, or name it in data.ignore.")
    if reasoning == "template":
        message["reasoning_content"] = thoughts
    elif reasoning == "think":
        message["content"] = _in_think(thoughts, message["content"])
    elif reasoning == "tags":
        message["content"] = in_tags(thoughts, message["content"])


def _in_think(thoughts: str, answer: str) -> str:
    """Thoughts before the answer, as most models that think write them."""
    return f"<think>\n{thoughts}\n</think>\n\n{answer}"


def with_thoughts_inside(message: Message) -> Message:
    """A message as `data.reasoning=think` has it."""
    if "reasoning_content" not in message:
        return message
    others = {key: value for key, value in message.items() if key != "reasoning_content"}
    return others | {"content": _in_think(message["reasoning_content"], message["content"])}


def in_tags(reasoning: str, answer: str) -> str:
    """The published wrapping of thoughts and answer."""
    return f"<reasoning>\n{reasoning}\n</reasoning>\n<answer>\n{answer}\n</answer>"


def _learns(turn: Message, role: str, ignore: frozenset[str], where: str) -> bool:
    """Whether a turn is learned: an assistant's, unless its weight is 0."""
    learned = role == "assistant"
    for key in sorted(TURN_LEARNED):
        value = None if key in ignore else turn.get(key)
        if value is None:
            continue
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            raise ValueError(
                f"{where}: {key}={value!r}: a turn is learned (1, true) or not (0, false). Where it says something "
                f"else, leave it out knowingly: data.ignore='[{key}]'."
            )
        if value and role != "assistant":
            raise ValueError(
                f"{where}: {key}={value!r} at a {role}'s turn; only the assistant's are learned. Set it to 0, or leave "
                f"it out knowingly: data.ignore='[{key}]'."
            )
        learned = learned and bool(value)
    return learned


def _text_of(content: Any, where: str, ignore: frozenset[str]) -> str:
    """The text of a message: a text, or blocks of text as OpenAI and Anthropic have them, one after the other."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ValueError(f"{where} has {type(content).__name__} content; a text, or a list of text blocks, is needed.")
    for block in content:
        kind = block.get("type") if isinstance(block, dict) else type(block).__name__
        if kind not in TEXT_BLOCKS or not isinstance(block.get("text"), str):
            raise ValueError(f"{where} has a content block of type {kind!r}; only {', '.join(TEXT_BLOCKS)} are read.")
        refuse_keys(block, sorted(REFUSED_KEYS), ignore, where)
    return "".join(block["text"] for block in content)


def keys_of_messages(value: Any) -> dict[str, str]:
    """The keys of role and text in a list of messages, where they are of a known pair."""
    try:
        listed = as_list(value)
    except ValueError:  # said when the row is read
        return {}
    first = listed[0] if isinstance(listed, list) and listed and isinstance(listed[0], dict) else {}
    for role, content in MESSAGE_KEYS:
        if role in first:
            return {"role": role, "content": content}
    return {}
