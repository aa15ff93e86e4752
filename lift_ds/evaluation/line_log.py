"""JSON Lines that grow while work is done, so that nothing is done twice after a kill."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class LineLog:
    """A JSON Lines file that is appended to by one process.

    Args:
        path: The file; made where there is none.
        names: What each line has a value for.
    """

    def __init__(self, path: Path, names: Collection[str]) -> None:
        """Stores the place."""
        self.path, self.names = path, frozenset(names)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other evaluations away: two would do everything twice, and cut off each other's lines.

        Raises:
            ValueError: Another one is at work.
            OSError: The file cannot be written.
        """
        with self.path.open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ValueError(
                    f"{self.path.parent}: another evaluation is writing here; wait for its end."
                ) from error
            yield

    def lines(self, mends: bool = True) -> list[dict[str, Any]]:
        """All whole lines.

        Args:
            mends: Whether half a line at the end, from a kill, is cut off, so that the next one is whole; another
                process's file is left as it is.

        Raises:
            ValueError: A line is none of this log.
        """
        if not self.path.is_file():
            return []
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if mends and len(whole) < len(content):
            os.truncate(self.path, len(whole))
        found = []
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                values = json.loads(line)
            except ValueError:
                values = None
            if not isinstance(values, dict) or values.keys() != self.names:
                raise ValueError(f"{self.path}:{number}: no line of this log; remove the folder.")
            found.append(values)
        return found

    def add(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Writes lines and sees them onto the disk."""
        with self.path.open("ab") as file:
            file.write(b"".join(json.dumps(line).encode() + b"\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())
