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

    def mend(self) -> None:
        """Cuts off half a line at the end, from a kill, so that the next one is whole."""
        if self.path.is_file():
            content = self.path.read_bytes()
            os.truncate(self.path, content.rfind(b"\n") + 1)

    def lines(self) -> list[dict[str, Any] | None]:
        """All whole lines; `None` for what is none of this log."""
        if not self.path.is_file():
            return []
        content = self.path.read_bytes()
        return [self.parse(line) for line in content[: content.rfind(b"\n") + 1].splitlines()]

    def parse(self, line: bytes) -> dict[str, Any] | None:
        """The values of a line; `None` where it is none of this log."""
        try:
            values = json.loads(line)
        except ValueError:
            return None
        return values if isinstance(values, dict) and values.keys() == self.names else None

    def add(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Writes lines and sees them onto the disk."""
        with self.path.open("ab") as file:
            file.write(b"".join(json.dumps(line).encode() + b"\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())
