"""What decided the tokens of a trained model's chats, as it travels with the model: two files in its folder.

    chat_template.jinja     the template, where transformers looks for it
    chat_format.json        the rest

A checkpoint, an export and a folder of adapters have them, so that a model is asked as it was taught.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lift_ds.text_files import load_json, read_text

from .templates import has_clock

if TYPE_CHECKING:  # tools that write it read no tokenizer
    from transformers import PreTrainedTokenizerBase

CHAT_TEMPLATE_FILE = "chat_template.jinja"
CHAT_FORMAT_FILE = "chat_format.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
REASONING_ANSWER = "<reasoning>, <answer>"
FROM_DATA = ("system", "clock", "reasoning", "dropped_text", "train_on", "pad_targets", "pad_to_multiple")
KEYS = {name: f"data.{name}" for name in FROM_DATA}


@dataclass(frozen=True)
class ChatFormat:
    """How chats became tokens; most are the settings of `data` of that name.

    Args:
        clock: The time that templates with a clock saw, as ISO text.
        wrapping: Tags that were put around the parts of an answer, or none.
        template: Text of the chat template; `None` where there is none.
    """

    system: str | None = None
    clock: str | None = None
    wrapping: str | None = None
    reasoning: str = "template"
    dropped_text: str = "error"
    train_on: str = "all"
    pad_targets: str = "one_eos"
    pad_to_multiple: int = 1
    template: str | None = None

    def messages(self, messages: list[dict[str, str]]) -> list[dict[str, str]]:
        """A conversation with the system text before it, unless it begins with one of its own."""
        if not self.system or (messages and messages[0]["role"] == "system"):
            return messages
        return [{"role": "system", "content": self.system}, *messages]

    def differences(self, other: ChatFormat, *ignored: str) -> list[tuple[str, str, str]]:
        """What another format has otherwise: the key, and both values as texts."""
        found = []
        for part in fields(self):
            mine, theirs = getattr(self, part.name), getattr(other, part.name)
            if mine != theirs and part.name not in ignored:
                shown = ["none" if value is None else str(value) for value in (mine, theirs)]
                one, other_one = ("another", "this") if part.name == "template" else shown
                found.append((KEYS.get(part.name, f"chat {part.name}"), one, other_one))
        return found


def format_of_settings(
    data: Mapping[str, Any], columns: Iterable[Mapping[str, Any]], template: str | None
) -> ChatFormat:
    """The format of rows that are read by a config's `data` section.

    Args:
        data: The section, as `run.json` has it.
        columns: The mappings of its sources: a column, or nothing, by meaning.
        template: Text of the chat template.
    """
    is_wrapped = any(mapping.get("reasoning") and mapping.get("answer") for mapping in columns)
    is_wrapped |= data.get("reasoning") == "tags"
    named = {name: data[name] for name in FROM_DATA if name in data and (name != "clock" or has_clock(template or ""))}
    return ChatFormat(**named, wrapping=REASONING_ANSWER if is_wrapped else None, template=template)


def template_text(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The template that a tokenizer renders chats with."""
    return str(tokenizer.get_chat_template()) if tokenizer.chat_template else None


def read_format(folder: Path) -> ChatFormat | None:
    """The format that a model's or adapters' folder was trained with; `None` where it does not say.

    Raises:
        ValueError: The file cannot be read, or says what this version does not know.
    """
    path = folder / CHAT_FORMAT_FILE
    if not path.is_file():
        return None
    try:
        loaded = load_json(read_text(path))
        return replace(ChatFormat(**loaded), template=stored_template(folder))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(
            f"{path}: no readable chat format: {error}; copy the folder again, or update lift_ds where a later version "
            "wrote it."
        ) from error


def write_format(folder: Path, chat_format: ChatFormat) -> None:
    """Writes a format into a folder whose tokenizer, if it has one, is there already; templates that differ go."""
    values = asdict(chat_format)
    template = values.pop("template")
    (folder / CHAT_FORMAT_FILE).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    if template is None or template == stored_template(folder):
        return
    (folder / CHAT_TEMPLATE_FILE).write_text(template, encoding="utf-8")
    config = folder / TOKENIZER_CONFIG
    values = load_json(read_text(config)) if config.is_file() else {}
    if "chat_template" in values:  # older versions of transformers read no other
        config.write_text(json.dumps(values | {"chat_template": template}, indent=2) + "\n", encoding="utf-8")


def stored_template(folder: Path) -> str | None:
    """Text of the template in a folder, from where transformers takes it first."""
    path, config = folder / CHAT_TEMPLATE_FILE, folder / TOKENIZER_CONFIG
    if path.is_file():
        return path.read_text(encoding="utf-8")
    stored = load_json(read_text(config)).get("chat_template") if config.is_file() else None
    if isinstance(stored, list):
        stored = next((entry["template"] for entry in stored if entry.get("name") == "default"), None)
    return stored
