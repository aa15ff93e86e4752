"""The way a model is asked: as it was taught, or as flags say instead, which is said."""

from __future__ import annotations

import argparse
from pathlib import Path

from lift_ds.data.text.chat_format import read_format
from lift_ds.evaluation.asking.answering import Answerer


def add_format_flags(parser: argparse.ArgumentParser) -> None:
    """Flags that take the place of what the model's folder says."""
    parser.add_argument("--system", help="system text of every conversation; default: the model's own; '' for none")
    parser.add_argument(
        "--chat-template", help="llada, chatml, llama3 or the path of a jinja file; default: the model's own"
    )


def with_flags(
    answerer: Answerer, system: str | None, chat_template: str | None, adapters: str | None = None
) -> tuple[Answerer, list[str]]:
    """The model as the flags ask it.

    Args:
        answerer: The model, which knows what it was taught in.
        system: `--system`.
        chat_template: `--chat-template`.
        adapters: Folder of adapters that were put onto the model.

    Returns:
        The model, and what is to be said of it.

    Raises:
        ValueError: See `use_template`.
    """
    taught, asked = answerer.chat_format, answerer.asked(system, chat_template)
    differ = taught.differences(asked.chat_format)
    lines = [f"{name}={now}, instead of {before} that the model was taught" for name, before, now in differ]
    if not differ and taught.system:
        lines.append(f"data.system={taught.system}, as the model was taught")
    if adapters is not None and read_format(Path(adapters)) is not None:
        lines.append(f"chat format of the adapters in {adapters}")
    return asked, lines
