"""Prompts of `tools/generate.py`: those of its flags, with the place that an error names."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from lift_ds.evaluation.score_file import json_objects

NAMES = ("prompt", "question")
Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Prompt:
    """The user's turn, and where it was given."""

    text: str
    where: str

    def messages(self) -> Messages:
        """The turn as a conversation, or the next part of one."""
        return [{"role": "user", "content": self.text}]


def given_prompts(arguments: argparse.Namespace) -> list[Prompt]:
    """The prompts of `--prompt` and `--file`.

    Raises:
        ValueError: A row of the file has none, or the file has no rows.
        OSError: It cannot be read.
    """
    typed = [Prompt(text, f"--prompt {number}") for number, text in enumerate(arguments.prompt or [], start=1)]
    return typed + ([] if arguments.file is None else read_prompts(arguments.file))


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a JSON Lines file; empty lines are none.

    Raises:
        ValueError: A row has none, or there are no rows; the message names file and line.
        OSError: It cannot be read.
    """
    prompts = []
    for where, row in json_objects(path, NAMES):
        text = next((row[name] for name in NAMES if name in row), None)
        if not isinstance(text, str):
            raise ValueError(f"{where}: a JSON object with the text of a prompt or question is needed.")
        prompts.append(Prompt(text, where))
    return prompts
