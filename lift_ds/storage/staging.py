"""A folder that appears whole or not at all, however many processes write to it and wherever they are killed.

It is written beside its place under a name of its own, `.writing-NAME-PID`, and renamed at the end. The writer holds a
lock on that folder for as long as it lives, so that the next one can tell what a killed one left, and removes it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

TEMPORARY_PREFIX = ".writing-"
SPARE_BYTES = 32 << 20  # for what is written beside the weights
FOLDER_EXISTS = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)


@contextmanager
def staged_folder(output: Path, num_bytes: int = 0) -> Iterator[Path]:
    """A new folder to write into, which becomes `output` when the block ends well, and is removed when it does not.

    Args:
        output: The folder.
        num_bytes: As in `check_place`.

    Raises:
        ValueError: `output` exists and holds something, before or after the block.
        RuntimeError: The place cannot be written, or is full.
    """
    check_place(output, num_bytes)
    temporary = output.parent / f"{TEMPORARY_PREFIX}{output.name}-{os.getpid()}"
    with ExitStack() as stack:
        try:
            _remove_abandoned(output)
            stack.callback(os.close, _make_locked(temporary))
            stack.callback(shutil.rmtree, temporary, ignore_errors=True)
            yield temporary
            _publish(temporary, output)
        except OSError as error:
            raise RuntimeError(
                f"{output} could not be written: {error}. Nothing is left there; free space or name another."
            ) from error


def _make_locked(folder: Path) -> int:
    """Makes a folder, locked before it has its name, so that nobody takes it for abandoned; returns the lock."""
    unlocked = folder.with_name(f".locking-{folder.name}")
    unlocked.mkdir(parents=True)
    lock = os.open(unlocked, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    os.rename(unlocked, folder)
    return lock


def check_place(output: Path, num_bytes: int = 0) -> None:
    """Checks that a folder can be made, and has room.

    Args:
        output: The folder.
        num_bytes: What will be written; 0 where that is little.

    Raises:
        ValueError: `output` exists and is no empty folder.
        RuntimeError: The folder around it cannot be written, or has too little space.
    """
    if output.is_symlink() or (output.exists() and (not output.is_dir() or any(output.iterdir()))):
        raise ValueError(f"{output} exists and is not empty; remove it or name another folder.")
    around = next(folder for folder in output.absolute().parents if folder.exists())
    if not around.is_dir() or not os.access(around, os.W_OK):
        raise RuntimeError(f"{around} cannot be written; name another output folder.")
    free, needed = shutil.disk_usage(around).free, num_bytes + SPARE_BYTES
    if num_bytes and free < needed:
        raise RuntimeError(
            f"{around}: {free / 2**30:.2f} GiB free, {needed / 2**30:.2f} GiB needed; nothing was written. Free space "
            "or name another place."
        )


def _publish(temporary: Path, output: Path) -> None:
    try:
        os.rename(temporary, output)
    except OSError as error:
        if error.errno in FOLDER_EXISTS:
            raise ValueError(
                f"{output} exists and is not empty: something else wrote it meanwhile, and nothing of it was changed; "
                "name another folder."
            ) from error
        raise


def _remove_abandoned(output: Path) -> None:
    """Removes what killed writers of the same folder left: temporary folders that nobody holds a lock on."""
    for path in output.parent.glob(f"{TEMPORARY_PREFIX}{output.name}-*"):
        handle = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
        except BlockingIOError:
            continue  # its writer is alive
        finally:
            os.close(handle)
