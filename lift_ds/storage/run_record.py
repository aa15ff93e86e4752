"""`run.json`, the record of a run: in its folder and in each of its checkpoints. And the number of its format.

A checkpoint's manifest has the same number, so that what a later version wrote is refused by name, not taken for
damaged.

    1   no number; every option of every objective, whichever the run had
    2   the number; of the objective, only the options that its method has
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from lift_ds.text_files import load_json, read_text

from .file_diagnosis import explain

RUN_FILE = "run.json"
FORMAT_KEY = "format"
FORMAT = 2  # what is written; a new one gets a line in the docstring and its step in `upgrade_run`

SCORED = {"complementary", "rho", "scoring", "scoring_precision", "refresh_share", "warm_start_steps"}
OPTIONS_OF_FORMAT_1 = {
    "vanilla": {"complementary"},
    "random": {"complementary", "rho"},
    "gift": {"scoring_precision"},
    "easy": SCORED,
    "hard": SCORED,
    "lift2": SCORED | {"policy"},
    "lift3": SCORED | {"policy", "random_weight"},
}


class NewerFormatError(ValueError):
    """A file was written by a later version of this package."""


def format_of(loaded: dict[str, Any], path: Path) -> int:
    """The format of a record or manifest, by its content.

    Raises:
        NewerFormatError: This version does not read it.
        ValueError: It is no number from 1.
    """
    number = loaded.get(FORMAT_KEY, 1)
    if type(number) is not int or number < 1:
        raise ValueError(f"{path}: {FORMAT_KEY}={number!r} is no whole number from 1")
    if number > FORMAT:
        raise NewerFormatError(
            f"{path}: its format is {number}, and the newest that this version of lift_ds reads is {FORMAT}; "
            "update lift_ds."
        )
    return number


def upgrade_run(record: dict[str, Any], number: int) -> dict[str, Any]:
    """A record of format `number` as this version writes it."""
    objective = record["run"].get("objective")
    if number == 1 and isinstance(objective, dict) and str(objective.get("method")) in OPTIONS_OF_FORMAT_1:
        unread = set().union(*OPTIONS_OF_FORMAT_1.values()) - OPTIONS_OF_FORMAT_1[objective["method"]]
        read = {key: value for key, value in objective.items() if key not in unread}
        record = record | {"run": record["run"] | {"objective": read}}
    return record | {FORMAT_KEY: FORMAT}


def write_run(folder: Path, record: dict[str, Any]) -> None:
    """Writes `run.json`, whole or not at all."""
    written = folder / f".{RUN_FILE}"
    written.write_text(json.dumps({FORMAT_KEY: FORMAT} | record, indent=2) + "\n", encoding="utf-8")
    os.replace(written, folder / RUN_FILE)


def read_run(folder: Path) -> dict[str, Any]:
    """The record of a run, from its folder or from a checkpoint of ours, as this version writes it.

    Raises:
        NewerFormatError: A later version wrote it.
        ValueError: It is missing or cannot be read.
    """
    path = folder / RUN_FILE
    try:
        loaded = load_json(read_text(path))
        if not isinstance(loaded, dict):
            raise ValueError("it is no mapping")
        number = format_of(loaded, path)
        if not isinstance(loaded.get("run"), dict):
            raise ValueError("it has no entry 'run'")
        return upgrade_run(loaded, number)
    except NewerFormatError:
        raise
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path}: no readable record of a run: {error}; copy the folder again.{explain(path)}"
        ) from error


def refuse_newer_run(folder: Path) -> None:
    """Refuses the folder of a run that a later version wrote; resuming replaces a record that cannot be read.

    Raises:
        NewerFormatError: A later version wrote it.
    """
    try:
        read_run(folder)
    except ValueError as error:
        if isinstance(error, NewerFormatError):
            raise
