"""The chat format of a checkpoint of this package, also of one that was written before it was kept."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from lift_ds.data.text.chat_format import ChatFormat, format_of_settings, read_format, stored_template
from lift_ds.data.text.templates import TEMPLATES, read_template
from lift_ds.storage.manifest import HF_FOLDER, LANES_FILE
from lift_ds.storage.run_record import read_run
from lift_ds.text_files import load_json, read_text


def checkpoint_format(own: Path) -> ChatFormat:
    """The format that a checkpoint was trained with, the template's text included.

    Raises:
        ValueError: It was written before the template was kept, and the file that it names is not there or has changed.
    """
    kept = read_format(own / HF_FOLDER)
    if kept is not None:
        return kept
    data = read_run(own)["run"]["data"]
    columns = [source.get("columns") or {} for source in data.get("sources") or []] + [data.get("columns") or {}]
    found = format_of_settings(data, columns, stored_template(own / HF_FOLDER))
    named = data.get("chat_template")
    return found if named is None else replace(found, template=_named_template(own, named))


def _named_template(own: Path, named: str) -> str:
    """The text of the template that a run named, compared with what it was."""
    problem = ""
    try:
        source = TEMPLATES.get(named) or read_template(named)
    except ValueError as error:
        source, problem = "", str(error)
    identity: dict[str, Any] = load_json(read_text(own / LANES_FILE)).get("identity", {})
    if not problem and hashlib.sha256(source.encode()).hexdigest() != identity.get("chat template"):
        problem = f"data.chat_template={named!r} has changed since."
    if problem:
        raise ValueError(
            f"{own} was trained with a chat template that it does not hold: {problem} Put the file back there, so that "
            "the model is asked as it was taught."
        )
    return source
