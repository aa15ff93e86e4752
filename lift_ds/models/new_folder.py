"""Output folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def check_free(output: Path) -> None:
    """Checks that nothing would be overwritten.

    Raises:
        ValueError: `output` exists and is no empty folder.
    """
    if output.is_symlink() or (output.exists() and (not output.is_dir() or any(output.iterdir()))):
        raise ValueError(f"{output} exists and is not empty; remove it or name another folder.")


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """A folder to write into, which gets its final name when the block ends without an error.

    Until then it is `.writing-NAME-PID` beside it; after an error it is removed. A killed process leaves it there, and
    nothing under the final name.

    Args:
        output: The final name; an empty folder of that name is replaced.

    Yields:
        The temporary folder.

    Raises:
        ValueError: `output` holds something, also if something came there while the block ran.
        OSError: The place cannot be written.
    """
    check_free(output)
    temporary = output.absolute().parent / f".writing-{output.name}-{os.getpid()}"
    temporary.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        check_free(output)
        os.rename(temporary, output)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
