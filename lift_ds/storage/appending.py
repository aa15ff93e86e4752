"""Files that a run adds lines to while it trains."""

from __future__ import annotations

from contextlib import suppress
from typing import TextIO


def append_line(file: TextIO, line: str) -> None:
    """Adds a line, which the file's readers see at once.

    Raises:
        RuntimeError: The disk is full, read-only or gone.
    """
    try:
        file.write(f"{line}\n")
        file.flush()
    except OSError as error:
        with suppress(OSError):
            file.close()  # what it holds of the line would fail once more at its end
        raise RuntimeError(
            f"{file.name}: no line can be added: {error.strerror}. Checkpoints are untouched; give the disk room, or "
            "see why it takes nothing, and go on with --resume auto."
        ) from error
