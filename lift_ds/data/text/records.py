"""Rows of people's own formats as conversations, by a configured column mapping.

    columns.messages                      a list of {role, content}; the key names are configurable
    columns.prompt + columns.response     one turn each
    columns.prompt + columns.reasoning + columns.answer
                                          the published wrapping: <reasoning>...</reasoning>, <answer>...</answer>
    columns.text                          plain text, all of it learned
    columns.input_ids + columns.target_mask (+ columns.filler_mask)
                                          tokens that were made before; see `ready_rows`

A column may be a path into a list or object: `thinking_trajectories.0`. Nothing is guessed beyond the table of known
formats, and which one was taken is said at the start of a run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lift_ds.data.settings import ColumnsConfig
from lift_ds.data.sources import Row

ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}
KNOWN_FORMATS: tuple[dict[str, str], ...] = (
    {"input_ids": "input_ids", "target_mask": "target_mask", "filler_mask": "filler_mask"},
    {"input_ids": "input_ids", "target_mask": "target_mask"},
    {"messages": "messages"},
    {"messages": "conversations", "role": "from", "content": "value"},
    {"prompt": "prompt", "response": "response"},
    {"prompt": "question", "reasoning": "thinking_trajectories.0", "answer": "attempt"},
    {"prompt": "question", "reasoning": "deepseek_thinking_trajectory", "answer": "deepseek_attempt"},
    {"prompt": "question", "response": "answer"},
    {"text": "text"},
)


@dataclass(frozen=True)
class Conversation:
    """Messages of a chat, or plain text without a template."""

    messages: tuple[dict[str, str], ...] = ()
    text: str | None = None


def detect_columns(row: Row) -> ColumnsConfig:
    """The first known format whose columns the row has.

    Raises:
        ValueError: None fits; the message lists the row's columns.
    """
    for known in KNOWN_FORMATS:
        columns = ColumnsConfig(**known)
        if all(column.split(".")[0] in row.values for column in columns.named().values()):
            return columns
    raise ValueError(
        f"{row.where}: columns {sorted(row.values)} are no known format. Name them, for example "
        "data.columns.prompt=question data.columns.response=generation."
    )


def read_conversation(row: Row, columns: ColumnsConfig, system: str | None) -> Conversation:
    """The conversation of one row.

    Args:
        row: The record.
        columns: The mapping.
        system: Text of a system turn put first, if any.

    Raises:
        ValueError: A mapped column is missing, empty, or of another type; the message names file and line.
    """
    if columns.text is not None:
        return Conversation(text=text_at(row, columns.text))
    if columns.messages is not None:
        turns = [as_turn(turn, columns, row.where) for turn in list_at(row, columns.messages)]
    else:
        turns = [turn_of("user", text_at(row, str(columns.prompt))), turn_of("assistant", response_of(row, columns))]
    if system is not None:
        turns.insert(0, turn_of("system", system))
    if turns[-1]["role"] != "assistant":
        raise ValueError(f"{row.where}: the last message is from {turns[-1]['role']!r}; it must be the assistant's.")
    return Conversation(messages=tuple(turns))


def response_of(row: Row, columns: ColumnsConfig) -> str:
    """The assistant's text: a response column, or reasoning and answer in their tags."""
    if columns.response is not None:
        return text_at(row, columns.response)
    reasoning, answer = text_at(row, str(columns.reasoning)), text_at(row, str(columns.answer))
    return f"<reasoning>\n{reasoning}\n</reasoning>\n<answer>\n{answer}\n</answer>"


def turn_of(role: str, content: str) -> dict[str, str]:
    """A message as chat templates read it."""
    return {"role": role, "content": content}


def as_turn(turn: Any, columns: ColumnsConfig, where: str) -> dict[str, str]:
    """One message of a list, with its role in the templates' words."""
    if not isinstance(turn, dict) or columns.role not in turn or columns.content not in turn:
        raise ValueError(f"{where}: a message without {columns.role!r} and {columns.content!r}: {str(turn)[:80]}")
    role, content = turn[columns.role], turn[columns.content]
    if not isinstance(role, str) or role not in ROLES or not isinstance(content, str):
        raise ValueError(
            f"{where}: message role {role!r} with {type(content).__name__} content; allowed roles: {sorted(ROLES)}"
        )
    return turn_of(ROLES[role], content)


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


def text_at(row: Row, column: str) -> str:
    """A non-empty string of a row."""
    value = value_at(row, column)
    if isinstance(value, list):
        raise ValueError(f"{row.where}: column {column!r} is a list of {len(value)}; name one entry, as {column}.0.")
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{row.where}: column {column!r} must hold text, not {str(value)[:40]!r}.")
    return value


def list_at(row: Row, column: str) -> list[Any]:
    """A non-empty list of a row."""
    value = value_at(row, column)
    if not isinstance(value, list) or not value:
        raise ValueError(f"{row.where}: column {column!r} must hold a list of messages, not {str(value)[:40]!r}.")
    return value
