"""Prompts of `tools/generate.py`: those of its flags, with the place that an error names."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lift_ds.data.settings import ColumnsConfig
from lift_ds.data.text.objects import as_list, holds_something
from lift_ds.data.text.turns import CHAT_KEYS, Message, RowRules, keys_of_messages, read_turn
from lift_ds.evaluation.score_file import json_objects

NAMES = ("prompt", "question", "messages")
SYSTEM = "system"
Messages = list[Message]


@dataclass(frozen=True)
class Prompt:
    """A user's turn, what was said before it, and where it was given."""

    text: str
    where: str
    before: tuple[Message, ...] = ()

    def messages(self) -> Messages:
        """The turn with what was said before it, as a conversation or the next part of one."""
        return [*self.before, {"role": "user", "content": self.text}]


def given_prompts(arguments: argparse.Namespace) -> list[Prompt]:
    """The prompts of `--prompt` and `--file`; errors are those of `read_prompts`."""
    typed = [Prompt(text, f"--prompt {number}") for number, text in enumerate(arguments.prompt or [], start=1)]
    return typed + ([] if arguments.file is None else read_prompts(arguments.file))


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a JSON Lines file; empty lines are none.

    Raises:
        ValueError: A row has none, or there are no rows; the message names file and line.
        OSError: It cannot be read.
    """
    return [read_prompt(row, where) for where, row in json_objects(path, NAMES)]


def read_prompt(row: Mapping[str, Any], where: str) -> Prompt:
    """The prompt of a row: a text, or messages that end with the user's; with the row's own system text, if any.

    Raises:
        ValueError: It has none, or holds something that would not be said.
    """
    for key in sorted(CHAT_KEYS & row.keys() - {SYSTEM}):
        if holds_something(row[key]):
            raise ValueError(f"{where}: {key!r} would not be said; write it into the prompt, or remove it.")
    value = next((row[name] for name in NAMES if name in row), None)
    system = row.get(SYSTEM)
    before: tuple[Message, ...] = ({"role": "system", "content": system},) if isinstance(system, str) and system else ()
    if isinstance(value, str) and "messages" not in row:
        return Prompt(value, where, before)
    listed = as_list(value)
    if not isinstance(listed, list) or not listed:
        raise ValueError(f"{where}: a JSON object with the text of a prompt or question, or messages, is needed.")
    columns = ColumnsConfig(**keys_of_messages(listed))
    turns = [read_turn(turn, columns, RowRules(), where)[0] for turn in listed]
    if turns[-1]["role"] != "user":
        raise ValueError(f"{where}: the last message is from {turns[-1]['role']!r}; the model answers a user's.")
    return Prompt(turns[-1]["content"], where, (*before, *turns[:-1]))
