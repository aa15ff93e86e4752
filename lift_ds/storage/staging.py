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
from contextlib import contextmanager
from pathlib import Path

SPARE_BYTES = 32 << 20
FOLDER_EXISTS = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)


@contextmanager
def staged_folder(output: Path) -> Iterator[Path]:
    """A new folder to write into, which becomes `output` when the block ends well, and is removed when it does not.

    Raises:
        ValueError: `output` exists and holds something, before or after the block.
        RuntimeError: The place cannot be written, or is full.
    """
    refuse_existing(output)
    temporary = output.parent / f".writing-{output.name}-{os.getpid()}"
    try:
        remove_abandoned(output)
        lock = make_locked(temporary)
    except OSError as error:
        raise not_writable(output, error) from error
    try:
        yield temporary
        publish(temporary, output)
    except OSError as error:
        raise not_writable(output, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(lock)


def make_locked(folder: Path) -> int:
    """Makes a folder, locked before it has its name, so that nobody takes it for abandoned; returns the lock."""
    unlocked = folder.with_name(f".locking-{folder.name}")
    unlocked.mkdir(parents=True)
    lock = os.open(unlocked, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    os.rename(unlocked, folder)
    return lock


def refuse_existing(output: Path) -> None:
    """Checks that nothing would be overwritten.

    Raises:
        ValueError: `output` exists and is no empty folder.
    """
    if output.is_symlink() or (output.exists() and (not output.is_dir() or any(output.iterdir()))):
        raise ValueError(f"{output} exists and is not empty; remove it or name another folder.")


def publish(temporary: Path, output: Path) -> None:
    """Gives the finished folder its name.

    Raises:
        ValueError: Somebody else has taken it meanwhile; theirs stays.
    """
    try:
        os.rename(temporary, output)
    except OSError as error:
        if error.errno in FOLDER_EXISTS:
            raise ValueError(
                f"{output} exists and is not empty: something else wrote it meanwhile, and nothing of it was changed; "
                "name another folder."
            ) from error
        raise


def remove_abandoned(output: Path) -> None:
    """Removes what killed writers of the same folder left: temporary folders that nobody holds a lock on."""
    for path in output.parent.glob(f".writing-{output.name}-*"):
        handle = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
        except BlockingIOError:
            continue  # its writer is alive
        finally:
            os.close(handle)


def check_space(folder: Path, num_bytes: int) -> None:
    """Compares the free space with what is to be written.

    Raises:
        RuntimeError: There is too little.
    """
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise RuntimeError(
            f"{free / 2**30:.2f} GiB free in {folder.parent}, {num_bytes / 2**30:.2f} GiB needed; nothing was written. "
            "Free space or name another place."
        )


def not_writable(output: Path, error: OSError) -> RuntimeError:
    """The error for a place that cannot be written."""
    return RuntimeError(f"{output} could not be written: {error}. Nothing is left there; free space or name another.")
