"""What a run's checkpoint holds, room for one, and how one is restored on all ranks.

    checkpoints/step-000100/
        zero/...                DeepSpeed's shards
        latest                  "zero", so that DeepSpeed's own tools read the folder
        hf/                     config, tokenizer and chat format of the model, for export
        difficulty/             the difficulty table, a file a rank
        difficulty_memory/      what is remembered of rows, a file a rank, by block
        lanes.json              data position
        base.json               of a run with adapters: the files of the frozen weights, which the shards leave out
        run.json                resolved run config and DeepSpeed JSON, see `lift_ds.storage.run_record`
        gradient_norms.json     of the last steps, where optim.skip_above compares with them
        patience.json           the lowest held-out loss, where eval.patience compares with it
        manifest.json           format, step, world size, model fingerprint, size and SHA-256 of every other file
        manifest.sha256         its own, as `sha256sum --check` reads it
    checkpoints/latest          name of the newest whole checkpoint
    checkpoints/best            name of the best one, and by what; see `lift_ds.storage.best`

Every rank hashes the files that it has written; rank 0 collects, writes the manifest, syncs and renames. A checkpoint
counts only if its manifest does. `saving` writes one, at once or behind the training.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lift_ds.data.sources.card import CARD_NAME
from lift_ds.data.text.chat_format import ChatFormat, write_format
from lift_ds.export.folder import companions
from lift_ds.planning.costs import checkpoint_bytes
from lift_ds.planning.row_memory import free_host_bytes
from lift_ds.ranks.launch import read_launch
from lift_ds.storage.frozen_base import BaseRecord, read_base
from lift_ds.storage.manifest import HF_FOLDER, LANES_FILE, read_manifest
from lift_ds.storage.run_record import write_run
from lift_ds.storage.zero_checkpoint import FULL_STAGE, open_zero_checkpoint
from lift_ds.storage.zero_files import ZERO_TAG
from lift_ds.text_files import load_json, read_text

from .engine import Engine
from .memory import Difficulties
from .restore import restore_engine

SPARE_HOST_BYTES = 1 << 30  # left to the machine when state is copied into its memory


class DiskFullError(RuntimeError):
    """Too little space for a checkpoint, of which nothing was written yet."""


class Comparison(Protocol):
    """What steps are compared with, and a checkpoint keeps in a small file of its own."""

    def save(self, folder: Path) -> None:
        """Writes that file, where it is needed."""


@dataclass(frozen=True)
class Contents:
    """What a run's checkpoints hold beside weights, optimizer and the position in the data.

    Args:
        run: What `run.json` holds.
        hf_folder: Where the model's config and tokenizer are.
        chat_format: How the run's chats became tokens.
        fingerprint: `model_fingerprint` of the model.
        buffers: What is known of tokens' difficulty, where it is kept.
        comparisons: What else the next steps are compared with.
        base: The frozen weights' files, which are then left out.
    """

    run: dict[str, Any]
    hf_folder: Path
    chat_format: ChatFormat
    fingerprint: str
    buffers: Difficulties | None
    comparisons: Sequence[Comparison]
    base: BaseRecord | None

    def write(self, folder: Path, lanes: dict[str, Any], comparisons: Sequence[Comparison]) -> None:
        """Writes the small files of one: with the position in the data, and comparisons as they were then."""
        (folder / LANES_FILE).write_text(json.dumps(lanes), encoding="utf-8")
        write_run(folder, self.run)
        copied = folder / HF_FOLDER
        copied.mkdir(exist_ok=True)
        card = self.hf_folder / CARD_NAME  # an export inherits its license
        for path in (self.hf_folder / "config.json", *companions(self.hf_folder), card):
            if path != card or card.is_file():
                shutil.copyfile(path, copied / path.name)
        write_format(copied, self.chat_format)
        for each in comparisons:
            each.save(folder)
        if self.base is not None:
            self.base.write(folder)


def agree_on_main(engine: Engine, action: Callable[[], Any], final: Path) -> Any:
    """What `agree` returns on rank 0, which alone acts; `None` on others."""
    return agree(engine, action if engine.rank == 0 else lambda: None, final)


def agree(engine: Engine, action: Callable[[], Any], final: Path) -> Any:
    """Runs `action` on every rank; if it fails anywhere, every rank raises the same error.

    Raises:
        RuntimeError: The action failed on some rank.
    """
    result, problem = None, None
    try:
        result = action()
    except (OSError, RuntimeError, ValueError) as error:
        problem = f"rank {engine.rank}: {error}"
    problems = [problem_of_rank for problem_of_rank in engine.gather_objects(problem) if problem_of_rank]
    if problems:
        raise not_written(final, "; ".join(problems))
    return result


def check_space(engine: Engine, folder: Path, only_trained: bool, temporary: Path | None = None) -> None:
    """Makes the folder, clears the place of a new checkpoint, and compares free space with what one takes.

    Raises:
        DiskFullError: There is too little space; every rank raises it.
        RuntimeError: The folder cannot be written; every rank raises it.
    """
    weights, trained = engine.num_parameters(only_trained), engine.num_parameters(only_trained=True)
    needed = checkpoint_bytes(weights, trained)

    def check() -> str:
        folder.mkdir(parents=True, exist_ok=True)
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        free = shutil.disk_usage(folder).free
        return (
            f"{free / 2**30:.2f} GiB free in {folder}, about {needed / 2**30:.2f} GiB needed" if free < needed else ""
        )

    short = engine.gather_objects(agree_on_main(engine, check, folder))[0]
    if short:
        raise not_written(folder, short, DiskFullError)


def not_written(path: Path, reason: str, kind: type[RuntimeError] = RuntimeError) -> RuntimeError:
    """The error of a checkpoint that could not be written."""
    return kind(
        f"checkpoint {path} could not be written: {reason}. "
        "Older checkpoints are untouched; free space or set another output, and resume."
    )


def has_host_memory(engine: Engine, only_trained: bool) -> bool:
    """Whether every rank's host has room for copies of its ranks' parts of a checkpoint."""
    weights, trained = engine.num_parameters(only_trained), engine.num_parameters(only_trained=True)
    here = checkpoint_bytes(weights, trained) * read_launch().local_world_size / engine.world_size
    return all(engine.gather_objects(free_host_bytes() > here + SPARE_HOST_BYTES))


def load_checkpoint(
    engine: Engine, checkpoint: Path, fingerprint: str, base: BaseRecord | None
) -> tuple[int, dict[str, Any]]:
    """Restores weights and optimizer; frozen weights that the checkpoint leaves out, `base`, are loaded already.

    Returns:
        The step and the data position.

    Raises:
        ValueError: It belongs to another model, or its shards do not fit each other.
    """
    manifest = read_manifest(checkpoint)
    if manifest.model != fingerprint:
        raise ValueError(f"{checkpoint} belongs to another model: its parameter names or shapes differ.")
    saved_base = read_base(checkpoint)
    if saved_base is not None:
        saved_base.check(base or BaseRecord("this run's model", {}), str(checkpoint))
    reader = (engine.rank, engine.world_size) if engine.stage == FULL_STAGE else None
    restore_engine(engine, open_zero_checkpoint(checkpoint / ZERO_TAG, reader))
    return manifest.step, load_json(read_text(checkpoint / LANES_FILE))
