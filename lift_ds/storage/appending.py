"""Files that a run adds lines to while it trains: how a line is added, and how a reader gets what was added."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
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


@dataclass(frozen=True)
class Place:
    """How far a file was read: to the end of its last whole line; which file that was, and what follows.

    Args:
        inode: The file's number; 0 where there was none.
        num_bytes: Bytes of whole lines.
        num_half: Bytes of a last line that does not end yet; a kill may have cut it short.
    """

    inode: int = 0
    num_bytes: int = 0
    num_half: int = 0


@dataclass(frozen=True)
class Added:
    """What a file has besides what was read of it before.

    Args:
        lines: Whole lines, without their ends and without empty ones.
        place: Where to read on.
        is_anew: It is another file by now, or was cut: what was read before counts no more.
    """

    lines: list[bytes]
    place: Place
    is_anew: bool


def read_added(path: Path, before: Place) -> Added:
    """Whole lines that were added to a file since it was read up to a place; a file that is missing has none.

    Raises:
        ValueError: It is there, but cannot be read.
    """
    try:
        with path.open("rb") as file:
            inode = path.stat().st_ino
            size = file.seek(0, 2)
            is_anew = before.inode not in (0, inode) or size < before.num_bytes
            start = 0 if is_anew else before.num_bytes
            file.seek(start)
            content = file.read()
    except FileNotFoundError:
        return Added([], Place(), before.inode != 0)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}; see who may read it.") from error
    whole, end, half = content.rpartition(b"\n")
    lines = [line for line in whole.split(b"\n") if line.strip()]
    return Added(lines, Place(inode, start + len(whole) + len(end), len(half)), is_anew)
