"""What every kind of data offers: an index of chunks, made once, and the rows of one chunk at a time.

A chunk is what is read in one go: a segment of a jsonl file, a row group of a parquet file, a record batch of an arrow
file, a whole JSON list or compressed file, a range of a built-in task.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Row:
    """One record and where it stands, for messages (`file:line`, or the file and the row number).

    Args:
        values: The record; empty where it cannot be read.
        problem: Why it cannot be read, without `where`. Other rows of its chunk are not touched by it.
    """

    values: dict[str, Any]
    where: str
    problem: str | None = None


@dataclass(frozen=True)
class Chunk:
    """A part of a source: `start` is a byte offset, row group or first row; `first_line` counts lines from 1."""

    source: str
    start: int
    num_rows: int
    first_line: int = 1
    num_bytes: int = 0


@dataclass(frozen=True)
class SourceIndex:
    """What one pass over a source finds: its chunks in file order, and a hash of what they hold."""

    chunks: tuple[Chunk, ...]
    content_hash: str


@dataclass(frozen=True)
class SourceSignature:
    """What tells, unread, that a file is the one that was indexed: its full path, and marks such as size and etag."""

    path: str
    marks: dict[str, str] = field(default_factory=dict)


class Source(ABC):
    """A file, or a built-in task, that can list its chunks and read one of them."""

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def scan(self) -> SourceIndex:
        """Lists all chunks.

        Raises:
            ValueError: The file is not what its ending says; the message names it.
            ConnectionError: A remote file could not be reached.
        """

    @abstractmethod
    def read(self, chunk: Chunk) -> Sequence[Row]:
        """The rows of one chunk, with the errors of `scan`."""

    def signature(self) -> SourceSignature | None:
        """What the index may be kept under; `None` where scanning costs nothing or changes could not be seen."""
        return None


@contextmanager
def locate_errors(where: str, kind: str, diagnose: Callable[[], str | None] | None = None) -> Iterator[None]:
    """Turns whatever a decoder raises into an error that names the file; a lost connection stays what it is.

    `diagnose` says what a file is instead, as far as its first bytes tell; it is asked only after an error.

    Raises:
        ValueError: The content is not of that kind.
    """
    try:
        yield
    except ConnectionError:
        raise
    except Exception as error:  # decoders raise their own types, some of them OSError
        found = diagnose() if diagnose is not None else None
        if found is not None:
            raise ValueError(f"{where}: no {kind}: the file {found}.") from error
        raise ValueError(f"{where}: cannot be read as {kind}: {error}. Is the file whole? Write it again.") from error
