"""The run that goes on: its record and checkpoint, and whether what is named now is what it was made with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lift_ds.config.resuming import JSON_PREFIX, MISSING, Change, Rule, differing, rule_of, shown
from lift_ds.data.order.stream import PackStream
from lift_ds.data.text.chat_format import CHAT_TEMPLATE_FILE
from lift_ds.data.text.templates import TEMPLATES
from lift_ds.models.family import read_raw_config
from lift_ds.models.vocabulary import NEEDED_IDS
from lift_ds.ranks.shares import Ranks, balanced
from lift_ds.section import flat
from lift_ds.storage.manifest import (
    HF_FOLDER,
    LANES_FILE,
    CheckpointManifest,
    file_faults,
    find_checkpoint,
    find_size_faults,
)
from lift_ds.storage.run_record import RUN_FILE, read_run
from lift_ds.text_files import load_json, read_text

# What an export writes anew: the model is the same.
EXPORTS_FIELDS = ("auto_map", "architectures", "torch_dtype", "dtype", "transformers_version", "_name_or_path")


@dataclass(frozen=True)
class Resumed:
    """The run that goes on, by its `run.json`.

    Args:
        folder: Where that is: the checkpoint, or the run folder where no checkpoint was written yet.
        has_steps: Whether it is a checkpoint.
        record: Its content.
    """

    folder: Path
    has_steps: bool
    record: dict[str, Any]

    @property
    def settings(self) -> dict[str, Any]:
        """All settings by dotted key."""
        return flat({**self.record["run"], "deepspeed": self.record.get("deepspeed", {})})


def find_resumed(output: Path, resume: str) -> Resumed | None:
    """The run in folder `output` that `checkpoint.resume` asks to go on with, or `None` where there is none.

    A run that ended before its first checkpoint is the same run, too, if it left its record.

    Raises:
        NewerFormatError: A later version wrote it.
        ValueError: A named checkpoint is not whole, all are broken, or the record cannot be read.
    """
    checkpoint, _ = find_checkpoint(output / "checkpoints", resume, find_size_faults)
    if checkpoint is not None:
        return Resumed(checkpoint, True, read_run(checkpoint))
    if resume == "auto" and (output / RUN_FILE).is_file():
        return Resumed(output, False, read_run(output))
    return None


class UnreadError(Exception):
    """The files of a checkpoint are still to be read, by all ranks together."""


def find_together(
    folder: Path, resume: str, ranks: Ranks, key: str = "checkpoint.resume"
) -> tuple[Path | None, list[str]]:
    """`find_checkpoint`, which rank 0 does, while every rank reads its share of the bytes; all of them call it.

    Raises:
        ValueError: As of `find_checkpoint`, on every rank.
    """
    known: dict[Path, list[str]] = {}

    def look_up(checkpoint: Path, manifest: CheckpointManifest) -> list[str]:
        if checkpoint not in known:
            raise UnreadError(checkpoint, manifest)
        return known[checkpoint]

    def look() -> tuple[bool, Any]:
        try:
            return True, find_checkpoint(folder, resume, look_up, key)
        except UnreadError as unread:
            return False, unread.args

    while True:
        is_found, found = ranks.on_main(look)
        if is_found:
            return found
        checkpoint, manifest = found
        sizes = {name: record.num_bytes for name, record in manifest.files.items()}
        mine = file_faults(checkpoint, manifest, balanced(sizes, ranks.world_size)[ranks.rank])
        faults = {name: fault for share in ranks.gather_objects(mine) for name, fault in share.items()}
        known[checkpoint] = [faults[name] for name in manifest.files if name in faults]


def find_later_start(resumed: Resumed, output: Path) -> list[str]:
    """What the run folder's record has otherwise: of a later start that left no checkpoint; a line for each key."""
    try:
        record = read_run(output)
    except ValueError:
        return []
    return [
        f"{output / RUN_FILE}, of a later start without a checkpoint, had {change.key}={shown(change.now)}; "
        f"the checkpoint was made with {shown(change.before)}"
        for change in changes_of_meaning(resumed, Resumed(output, False, record))
    ]


def changes_of_meaning(first: Resumed, second: Resumed) -> list[Change]:
    """Recorded settings that differ and are neither free nor names of files; an older version knew fewer keys."""
    return [
        change
        for change in differing(first.settings, second.settings)
        if rule_of(change.key) in (Rule.MEANT, Rule.FIXED)
        and (change.key.startswith(JSON_PREFIX) or MISSING not in (change.before, change.now))
    ]


def require_same_settings(resumed: Resumed, checkpoint: Path) -> None:
    """Checks that the checkpoint that is loaded has the settings that the run was started with.

    A damaged one is found when its bytes are read; the one before may be of another time.

    Raises:
        ValueError: It has not.
    """
    if not resumed.has_steps or checkpoint.resolve() == resumed.folder.resolve():
        return
    changes = changes_of_meaning(resumed, Resumed(checkpoint, True, read_run(checkpoint)))
    if changes:
        raise ValueError(
            f"{resumed.folder} is damaged, and {checkpoint}, the one before, was made with other settings: "
            f"{'; '.join(map(str, changes))}. Name it: --resume {checkpoint}"
        )


def find_model_changes(resumed: Resumed, folder: Path) -> list[str]:
    """Fields in which a model folder's config is not the one that the run was made with.

    Raises:
        ValueError: A config cannot be read.
    """
    if not resumed.has_steps:
        return []
    before, now = (flat(read_raw_config(side)) for side in (resumed.folder / HF_FOLDER, folder))
    return [
        str(change)
        for change in differing(before, now)
        if change.key.split(".")[0] not in EXPORTS_FIELDS
        and not (change.key in NEEDED_IDS and MISSING in (change.before, change.now))  # an export fills them in
    ]


def find_lost_template(resumed: Resumed, chat_template: str | None) -> list[str]:
    """A problem where the file of the run's chat template is gone, with the place of the checkpoint's own copy."""
    kept = resumed.folder / HF_FOLDER / CHAT_TEMPLATE_FILE
    is_there = chat_template is None or chat_template in TEMPLATES or Path(chat_template).is_file()
    if is_there or not kept.is_file():
        return []
    return [f"data.chat_template={chat_template}: no such file; the checkpoint has its text: data.chat_template={kept}"]


def check_position(resumed: Resumed | None, stream: PackStream) -> None:
    """Checks that a checkpoint's position in the data means the same in this run, before weights are read.

    Raises:
        ValueError: Rows, held-out rows, tokenizer or what decides the tokens are others, or it cannot be read.
    """
    if resumed is None or not resumed.has_steps:
        return
    path = resumed.folder / LANES_FILE
    try:
        position = dict(load_json(read_text(path)))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read: {error}; copy the checkpoint again.") from error
    stream.check_state(position)
