"""Rows of people's own formats as conversations, by a configured column mapping.

    columns.messages                      a list of {role, content}; the key names are configurable
    columns.prompt + columns.response     one turn each, or messages; several columns are joined
    columns.prompt + columns.reasoning + columns.answer
                                          the published wrapping: <reasoning>...</reasoning>, <answer>...</answer>
    columns.text                          plain text, all of it learned
    columns.input_ids + columns.target_mask (+ columns.filler_mask), or + columns.labels
                                          tokens that were made before; see `prepared`

A column may be a path into a list or object: `thinking_trajectories.0`. Nothing is guessed beyond the table of known
formats, and which one was taken is said at the start of a run, with the columns that it leaves out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lift_ds.data.settings import ColumnsConfig
from lift_ds.data.sources import Row

from .objects import as_list, holds_something, tools_in
from .turns import (
    CHAT_KEYS,
    LEARNED,
    THOUGHTS,
    TURN_LEARNED,
    Message,
    RowRules,
    in_tags,
    keys_of_messages,
    read_turn,
    refuse_keys,
)

KNOWN_FORMATS: tuple[dict[str, Any], ...] = (
    {"input_ids": "input_ids", "target_mask": "target_mask", "filler_mask": "filler_mask"},
    {"input_ids": "input_ids", "target_mask": "target_mask"},
    {"input_ids": "input_ids", "labels": "labels"},
    {"messages": "messages"},
    {"messages": "conversations"},
    {"prompt": "prompt", "response": "response"},
    {"prompt": "prompt", "response": "completion"},
    {"prompt": ["instruction", "input"], "response": "output"},
    {"prompt": ["instruction", "context"], "response": "response"},
    {"prompt": "question", "reasoning": "thinking_trajectories.0", "answer": "attempt"},
    {"prompt": "question", "reasoning": "deepseek_thinking_trajectory", "answer": "deepseek_attempt"},
    {"prompt": "question", "response": "answer"},
    {"text": "text"},
)
# Read, where a row has them, beside what the formats name.
BESIDE_CHATS = {"system": ("system", "system_prompt"), "tools": ("tools",)}
BESIDE_LABELS = {"attention_mask": ("attention_mask",)}


@dataclass(frozen=True)
class Conversation:
    """Messages of a chat, or plain text without a template.

    Args:
        messages: As templates read them; thoughts under `reasoning_content`.
        text: Plain text instead.
        tools: What the assistant may call.
        context: Places of the assistant's turns that are not learned.
    """

    messages: tuple[Message, ...] = ()
    text: str | None = None
    tools: tuple[dict[str, Any], ...] = ()
    context: frozenset[int] = frozenset()


def detect_columns(row: Row, ignore: frozenset[str] = frozenset()) -> ColumnsConfig:
    """The first known format whose columns the row has; of several that are joined, only the first is needed.

    Raises:
        ValueError: None fits; the message lists the row's columns.
    """
    values = {name: value for name, value in row.values.items() if name not in ignore} if ignore else row.values
    for known in KNOWN_FORMATS:
        firsts = (column if isinstance(column, str) else column[0] for column in known.values())
        if not all(column.split(".")[0] in values for column in firsts):
            continue
        kept: dict[str, Any] = {
            meaning: column if isinstance(column, str) else [one for one in column if one not in ignore]
            for meaning, column in known.items()
        }
        beside = BESIDE_LABELS if "labels" in known else BESIDE_CHATS if {"messages", "prompt"} & set(known) else {}
        found = {}
        for meaning, names in beside.items():
            name = next((name for name in names if name in values), None)
            if name is not None:
                found[meaning] = name
        keys = keys_of_messages(values[known["messages"]]) if "messages" in known else {}
        return ColumnsConfig(**kept, **found, **keys)
    raise ValueError(
        f"{row.where}: columns {sorted(values)} are no known format. Name what holds what: "
        "data.columns.messages=..., or data.columns.prompt=... (several columns: '[one, two]') with "
        "data.columns.response=..., or data.columns.text=..."
    )


def read_conversation(row: Row, columns: ColumnsConfig, rules: RowRules) -> Conversation:
    """The conversation of one row.

    Raises:
        ValueError: A mapped column is missing, empty, or of another type, or the row holds something that would change
            what is said or learned and is not used; the message names file and line.
    """
    _refuse_unread(row, columns, rules)
    if columns.text is not None:
        return Conversation(text=_text_at(row, columns.text))
    if columns.messages is not None:
        turns = [read_turn(turn, columns, rules, row.where) for turn in _messages_at(row, columns.messages)]
    else:
        prompt = _side_of(row, columns.prompt, "user", columns, rules)
        turns = [(message, False) for message, _ in prompt]
        if columns.response is not None:
            turns += _side_of(row, columns.response, "assistant", columns, rules)
        else:
            answer = in_tags(_text_at(row, columns.reasoning), _text_at(row, columns.answer))
            turns.append(({"role": "assistant", "content": answer}, True))
    own_system = "" if columns.system is None else _text_at(row, columns.system, is_needed=False)
    begins_with_system = turns[0][0]["role"] == "system"
    if own_system and begins_with_system:
        raise ValueError(
            f"{row.where}: column {columns.system!r} holds a system text, and the messages begin with one; remove one."
        )
    system = own_system or rules.system
    if system is not None and not begins_with_system:
        turns.insert(0, ({"role": "system", "content": system}, False))
    listed = None if columns.tools is None else row.values.get(columns.tools)
    tools = tools_in(listed, f"column {columns.tools!r}", row.where) if holds_something(listed) else ()
    return _as_conversation(turns, tools, row.where)


def _as_conversation(turns: list[tuple[Message, bool]], tools: tuple[dict[str, Any], ...], where: str) -> Conversation:
    """A conversation that ends with the assistant's turn, of messages, each with whether it is learned."""
    if turns[-1][0]["role"] != "assistant":
        raise ValueError(f"{where}: the last message is from {turns[-1][0]['role']!r}; it must be the assistant's.")
    if not any(is_learned for _, is_learned in turns):
        raise ValueError(f"{where}: no turn of the assistant is learned; remove the row, or give one a weight of 1.")
    context = frozenset(
        place for place, (message, is_learned) in enumerate(turns) if message["role"] == "assistant" and not is_learned
    )
    return Conversation(tuple(message for message, _ in turns), tools=tools, context=context)


def _refuse_unread(row: Row, columns: ColumnsConfig, rules: RowRules) -> None:
    """Refuses columns that the mapping leaves out although they would change what is said or learned."""
    if columns.text is None and not CHAT_KEYS.isdisjoint(row.values):  # few rows have one
        refuse_keys(row.values, sorted((CHAT_KEYS & row.values.keys()) - columns.used()), rules.ignore, row.where)
    for key in () if LEARNED.isdisjoint(row.values) else sorted(LEARNED):
        value = row.values.get(key)
        if value is not None and key not in rules.ignore and not (isinstance(value, int | float) and value == 1):
            raise ValueError(
                f"{row.where}: column {key!r} holds {str(value)[:40]!r}, but rows have no weight of their own. Remove "
                f"the row, or leave the column out knowingly: data.ignore='[{key}]'."
            )


def unused_keys(row: Row, columns: ColumnsConfig) -> Iterator[str]:
    """Columns of a row that hold something and are not read, and such keys of its messages, as `messages.id`.

    `messages.name` and its like are among them: whether a template writes them is not known here.
    """
    used = columns.used()
    yield from (name for name, value in row.values.items() if name not in used and holds_something(value))
    sides = [columns.messages] if columns.messages is not None else [columns.prompt, columns.response]
    for column in (column for column in sides if isinstance(column, str)):
        try:
            listed = as_list(value_at(row, column)) if column == columns.messages else value_at(row, column)
        except ValueError:  # the row is bad, which is said elsewhere
            continue
        for turn in listed if isinstance(listed, list) else []:
            for key, value in turn.items() if isinstance(turn, dict) else ():
                is_read = key in (columns.role, columns.content, "tool_calls", *THOUGHTS, *TURN_LEARNED)
                if not is_read and holds_something(value):
                    yield f"{column}.{key}"


def _side_of(
    row: Row, column: str | list[str] | None, role: str, columns: ColumnsConfig, rules: RowRules
) -> list[tuple[Message, bool]]:
    """The turns of a prompt or response: its messages, or one turn of its text."""
    assert column is not None
    value = value_at(row, column) if isinstance(column, str) else None
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [read_turn(turn, columns, rules, row.where) for turn in value]
    return [({"role": role, "content": _text_at(row, column)}, role == "assistant")]


def value_at(row: Row, column: str) -> Any:
    """The value of a column or of a path into it."""
    value: Any = row.values
    for step in column.split("."):
        if isinstance(value, list) and step.isdigit() and int(step) < len(value):
            value = value[int(step)]
        elif isinstance(value, dict) and step in value:
            value = value[step]
        else:
            raise ValueError(f"{row.where}: no column {column!r}; the row has {sorted(row.values)}.")
    return value


def _text_at(row: Row, column: str | list[str] | None, is_needed: bool = True) -> str:
    """The text of a column, or of several, joined by line breaks; where it is needed, the first must hold one."""
    assert column is not None
    first, *others = [column] if isinstance(column, str) else column
    texts = [_one_text(row, first, is_needed), *(_one_text(row, other, False) for other in others)]
    return "\n".join(text for text in texts if text)


def _one_text(row: Row, column: str, is_needed: bool) -> str:
    if not is_needed and column.split(".")[0] not in row.values:
        return ""
    value = value_at(row, column)
    if isinstance(value, list):
        raise ValueError(f"{row.where}: column {column!r} is a list of {len(value)}; name one entry, as {column}.0.")
    if not is_needed and not holds_something(value):
        return ""
    if not isinstance(value, str) or (is_needed and not value.strip()):
        raise ValueError(f"{row.where}: column {column!r} must hold text, not {str(value)[:40]!r}.")
    return value


def _messages_at(row: Row, column: str) -> list[Any]:
    value = value_at(row, column)
    try:
        listed = as_list(value)
    except ValueError as error:
        raise ValueError(f"{row.where}: column {column!r} is no list of messages: {error}.") from error
    if not isinstance(listed, list) or not listed:
        raise ValueError(f"{row.where}: column {column!r} must hold a list of messages, not {str(value)[:40]!r}.")
    return listed
