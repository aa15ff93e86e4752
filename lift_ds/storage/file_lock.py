"""Files that one process holds at a time: the kernel lets go of them with the process, however it ends."""

from __future__ import annotations

import fcntl
import os
import socket
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

POLL_SECONDS = 0.2
REPEAT_SECONDS = 60.0


class HeldError(ValueError):
    """Another process holds a file."""


@contextmanager
def held(path: Path, say_waiting: Callable[[str], object] | None = None) -> Iterator[None]:
    """Holds a file, in which stands by whom it is held.

    The lock is a POSIX one: forked children do not have it, and NFS passes it between machines.

    Args:
        path: The file; made where there is none, and left there.
        say_waiting: Told who holds the file, at once and every minute until this process does; else nobody waits.

    Raises:
        HeldError: Another process holds it, and nobody waits; the message says which.
        OSError: The file cannot be written.
    """
    with path.open("a+", encoding="utf-8", errors="replace") as file:
        _take(file, path, say_waiting)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        command = " ".join(sys.argv)[:200]
        _write_holder(file, f"process {os.getpid()} on {socket.gethostname()} ({command}) since {since}")
        try:
            yield
        finally:
            with suppress(OSError):  # the kernel lets go of it all the same, and an error of the block is told instead
                _write_holder(file, "")


def _take(file: IO[str], path: Path, say_waiting: Callable[[str], object] | None) -> None:
    said = -REPEAT_SECONDS
    while True:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except (BlockingIOError, PermissionError) as error:
            file.seek(0)
            holder = file.read().strip() or "another process"
            if say_waiting is None:
                raise HeldError(holder) from error
            if time.monotonic() - said >= REPEAT_SECONDS:
                say_waiting(holder)
                said = time.monotonic()
            time.sleep(POLL_SECONDS)
        except OSError as error:  # a file system without locks
            warnings.warn(f"{path}: cannot be locked ({error.strerror}): nothing else may use it now", stacklevel=4)
            return


def _write_holder(file: IO[str], holder: str) -> None:
    file.seek(0)
    file.truncate()
    file.write(holder)
    file.flush()
