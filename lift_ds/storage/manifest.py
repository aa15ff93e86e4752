"""Checkpoint folders: what makes one whole, which one is newest, and how one appears all at once.

A checkpoint is written under a temporary name, its manifest (sizes and SHA-256) last, and renamed. It counts only if
its manifest holds. Nothing here imports DeepSpeed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lift_ds.text_files import load_json, read_text

from .run_record import FORMAT, FORMAT_KEY, NewerFormatError, format_of
from .staging import TEMPORARY_PREFIX

MANIFEST, MANIFEST_SUM = "manifest.json", "manifest.sha256"
SUM_LINE = f"{{}}  {MANIFEST}\n"  # as sha256sum prints it
LATEST, BEST = "latest", "best"
LANES_FILE = "lanes.json"
HF_FOLDER, DIFFICULTY_FOLDER, MEMORY_FOLDER = "hf", "difficulty", "difficulty_memory"


@dataclass(frozen=True)
class FileRecord:
    """Size and SHA-256 of one file."""

    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class CheckpointManifest:
    """What a checkpoint holds.

    Args:
        step: Optimizer steps taken.
        world_size: Ranks that wrote it.
        zero_stage: ZeRO stage of its shards.
        model: Fingerprint of the model's parameter names and shapes.
        files: Every file but the manifest and its checksum, by path inside the checkpoint.
        format: See `run_record`.
    """

    step: int
    world_size: int
    zero_stage: int
    model: str
    files: dict[str, FileRecord]
    format: int = FORMAT


def model_fingerprint(shapes: dict[str, Any]) -> str:
    """Hash of parameter names and shapes."""
    listed = sorted((name, list(shape)) for name, shape in shapes.items())
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


def checkpoint_name(step: int) -> str:
    """Folder name of a step's checkpoint."""
    return f"step-{step:06d}"


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first; a copy that somebody named `step-000100.bak` is none."""
    return sorted((path for path in folder.glob("step-*") if path.name[5:].isdecimal()), key=step_of)


def step_of(checkpoint: Path) -> int:
    """The step in a checkpoint's folder name."""
    return int(checkpoint.name.removeprefix("step-"))


def hash_file(path: Path) -> FileRecord:
    """Size and SHA-256."""
    with open(path, "rb") as file:
        return FileRecord(path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


def sync_and_hash(path: Path) -> FileRecord:
    """Forces a file to disk, then hashes it."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
    return hash_file(path)


def write_synced(path: Path, text: str) -> None:
    """Writes a file and forces it to disk."""
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def publish_checkpoint(temporary: Path, final: Path) -> None:
    """Renames the finished folder and points `latest` at it, each in one atomic step."""
    if final.exists():
        shutil.rmtree(final)
    os.rename(temporary, final)
    point(final.parent / LATEST, final.name)


def point(pointer: Path, name: str, more: str = "") -> None:
    """Writes `latest` or `best` in one atomic step: the name of a checkpoint beside it and what more is known."""
    written = pointer.with_name(f".{pointer.name}")
    write_synced(written, f"{name}\n{more}")
    os.replace(written, pointer)
    folder = os.open(pointer.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_pointer(pointer: Path) -> str:
    """The name in `latest` or `best`."""
    return pointer.read_text(encoding="utf-8").partition("\n")[0].strip()


def pointed(path: Path) -> Path:
    """The checkpoint that a pointer names; any other path is itself.

    A `latest` that a power cut emptied, or that is gone, stands for the newest whole checkpoint; that is said.

    Raises:
        NewerFormatError: A later version wrote the newest checkpoint.
        ValueError: `best` names no checkpoint that is there, or `latest` does not and no whole one is.
    """
    folder = path.parent
    if path.name not in (LATEST, BEST) or path.is_dir() or not (path.is_file() or any(folder.glob("step-*"))):
        return path
    name = read_pointer(path) if path.is_file() else ""
    if name and (folder / name).is_dir():
        return folder / name
    fault = f"points to {name}, which is not there" if name else "is empty" if path.is_file() else "is missing"
    try:
        newest, passed_over = newest_whole(folder) if path.name == LATEST else (None, [])
    except NewerFormatError:
        raise
    except ValueError as error:
        raise ValueError(f"{path} {fault}, and there is {error} Name a checkpoint itself.") from error
    if newest is None:
        there = ", ".join(sorted(found.name for found in folder.iterdir() if found.is_dir())) or "none"
        raise ValueError(f"{path} {fault}; name a checkpoint itself. There are: {there}.")
    passed = f" (not {'; '.join(passed_over)})" if passed_over else ""
    warnings.warn(f"{path} {fault}; taken is the newest whole checkpoint, {newest.name}{passed}.", stacklevel=1)
    return newest


def remove_old(folder: Path, newest: int, keep: int) -> None:
    """Removes all but the best and the last `keep` checkpoints up to step `newest`, and what interrupted saves left.

    A removal that a kill left out is made up for by the next one. What cannot be removed is warned of.
    """
    upto = [path for path in checkpoints_in(folder) if step_of(path) <= newest]
    best = read_pointer(folder / BEST) if (folder / BEST).is_file() else None
    old = [path for path in upto[:-keep] if path.name != best]
    for path in [*old, *folder.glob(f"{TEMPORARY_PREFIX}*")]:
        try:
            shutil.rmtree(path)
        except OSError as error:  # the same text at the next save is not shown again
            warnings.warn(f"{path}: old, and cannot be removed ({error.strerror}); remove it yourself.", stacklevel=1)


def write_manifest(folder: Path, manifest: CheckpointManifest) -> None:
    """Writes a folder's manifest, and its own checksum beside it as `sha256sum` has it; both are on the disk then."""
    write_synced(folder / MANIFEST, json.dumps(asdict(manifest), indent=1))
    write_synced(folder / MANIFEST_SUM, SUM_LINE.format(hash_file(folder / MANIFEST).sha256))


def read_manifest(checkpoint: Path) -> CheckpointManifest:
    """The manifest of a checkpoint, as this version writes it.

    Raises:
        NewerFormatError: A later version wrote it.
        ValueError: There is none, it has changed (older ones have no checksum beside them), or it cannot be read.
    """
    path, beside = checkpoint / MANIFEST, checkpoint / MANIFEST_SUM
    try:
        if beside.is_file() and beside.read_bytes() != SUM_LINE.format(hash_file(path).sha256).encode():
            raise ValueError(f"it or {MANIFEST_SUM} has changed (checksum)")
        loaded = load_json(read_text(path))
        format_of(loaded, path)
        loaded[FORMAT_KEY] = FORMAT  # formats 1 and 2 differ by the number alone
        files = {name: FileRecord(**record) for name, record in loaded.pop("files").items()}
        return CheckpointManifest(files=files, **loaded)
    except NewerFormatError:
        raise
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{checkpoint}: no readable {MANIFEST}: {error}; this is no whole checkpoint.") from error


Find = Callable[[Path, CheckpointManifest], list[str]]  # the faults of a checkpoint's files


def find_faults(checkpoint: Path, manifest: CheckpointManifest) -> list[str]:
    """What is wrong with a checkpoint's files: missing, of another size or checksum."""
    return list(file_faults(checkpoint, manifest, manifest.files).values())


def find_size_faults(checkpoint: Path, manifest: CheckpointManifest) -> list[str]:
    """The same without reading the files, which takes no time."""
    return list(file_faults(checkpoint, manifest, manifest.files, by_content=False).values())


def file_faults(
    checkpoint: Path, manifest: CheckpointManifest, names: Iterable[str], by_content: bool = True
) -> dict[str, str]:
    """What is wrong with some of a checkpoint's files, by name."""
    faults = {}
    for name in names:
        path, record = checkpoint / name, manifest.files[name]
        try:
            if not path.is_file():
                faults[name] = f"{name} is missing"
            elif path.stat().st_size != record.num_bytes:
                faults[name] = f"{name} has {path.stat().st_size} bytes instead of {record.num_bytes}"
            elif by_content and hash_file(path) != record:
                faults[name] = f"{name} has changed (checksum)"
        except OSError as error:
            faults[name] = f"{name} cannot be read ({error.strerror})"
    return faults


def require_whole(checkpoint: Path) -> None:
    """Checks every byte of a checkpoint.

    Raises:
        ValueError: Something is missing or has changed.
    """
    faults = find_faults(checkpoint, read_manifest(checkpoint))
    if faults:
        raise ValueError(f"{checkpoint} is not whole: {'; '.join(faults)}.")


def find_checkpoint(
    folder: Path, resume: str, find: Find = find_faults, key: str = "checkpoint.resume"
) -> tuple[Path | None, list[str]]:
    """The checkpoint to start from, and why newer ones were passed over.

    Args:
        folder: `checkpoints` of the run.
        resume: `none`, `auto` (newest whole one, if any), a checkpoint's folder, or a pointer to one.
        find: Checks the files of one; by default every byte.
        key: Which setting names it, for messages.

    Raises:
        NewerFormatError: A later version wrote the named or the newest checkpoint.
        ValueError: A named checkpoint is not whole, or `auto` finds only broken ones.
    """
    if resume == "none":
        return None, []
    if resume != "auto":
        named = pointed(Path(resume))
        faults = find(named, read_manifest(named))
        if faults:
            raise ValueError(f"{key}={resume}: not whole: {'; '.join(faults)}.")
        return named, []
    try:
        return newest_whole(folder, find)
    except NewerFormatError:
        raise
    except ValueError as error:
        raise ValueError(f"{key}=auto: {error} Remove the broken ones to start anew.") from error


def newest_whole(folder: Path, find: Find = find_faults) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint of a folder, if there is any, and why newer ones were passed over.

    Args:
        folder: `checkpoints` of a run.
        find: As in `find_checkpoint`.

    Raises:
        NewerFormatError: A later version wrote the newest one.
        ValueError: There are only broken ones.
    """
    passed_over = [f"{path.name}: an interrupted save" for path in folder.glob(f"{TEMPORARY_PREFIX}*")]
    checkpoints = checkpoints_in(folder)[::-1]
    for path in checkpoints:
        try:
            faults = find(path, read_manifest(path))
        except NewerFormatError:  # it may well be whole: an older one in its place would lose steps unseen
            raise
        except ValueError as error:
            faults = [str(error)]
        if not faults:
            return path, passed_over
        passed_over.append(f"{path.name}: {'; '.join(faults)}")
    if checkpoints:
        raise ValueError(f"no whole checkpoint in {folder}: {' | '.join(passed_over)}.")
    return None, passed_over
