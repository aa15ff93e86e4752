"""JSON Lines and JSON lists, plain and compressed."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import IO

import pyarrow as pa

from .filesystem import DataFile, Retry
from .source import Chunk, Row, Source, SourceIndex, SourceSignature, locate_errors

JSONL_CHUNK_ROWS = 256
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}


class JsonFile(Source):
    """A file of JSON text, decompressed where its name ends in .gz or .zst."""

    def __init__(self, name: str, retry: Retry) -> None:
        """Stores the path."""
        super().__init__(name)
        self.file = DataFile(name, retry)
        ending = name.partition("?")[0].lower() if "://" in name else name.lower()
        self.compression = next((kind for end, kind in COMPRESSIONS.items() if ending.endswith(end)), None)

    def signature(self) -> SourceSignature | None:
        """The file's."""
        return self.file.signature()

    @contextmanager
    def open_text(self) -> Iterator[IO[bytes]]:
        """The whole file, decompressed, from its beginning."""
        with self.file.open(is_sequential=True) as file:
            if self.compression is None:
                yield file
            else:
                with locate_errors(self.name, self.compression), pa.PythonFile(file, mode="r") as packed:
                    yield io.BufferedReader(pa.CompressedInputStream(packed, self.compression))


class JsonLines(JsonFile):
    """One JSON object a line; blank lines are no rows."""

    def scan(self) -> SourceIndex:
        """Counts lines and hashes them in one pass; a compressed file is one chunk, as it has no way in."""
        hasher, chunks = hashlib.sha256(), []
        start, first_line, num_rows, offset = 0, 1, 0, 0
        with self.open_text() as file:
            for number, line in enumerate(file, start=1):
                hasher.update(line)
                offset += len(line)
                num_rows += bool(line.strip())
                if num_rows == JSONL_CHUNK_ROWS and self.compression is None:
                    chunks.append(Chunk(self.name, start, num_rows, first_line, offset - start))
                    start, first_line, num_rows = offset, number + 1, 0
        if num_rows:
            chunks.append(Chunk(self.name, start, num_rows, first_line, offset - start))
        return SourceIndex(tuple(chunks), hasher.hexdigest())

    def read(self, chunk: Chunk) -> list[Row]:
        """Parses the lines of a segment."""
        if self.compression is not None:
            with self.open_text() as text:
                return self.rows(text, chunk.first_line)
        with self.file.open() as file:
            file.seek(chunk.start)
            return self.rows(file.read(chunk.num_bytes).split(b"\n"), chunk.first_line)

    def rows(self, lines: Iterable[bytes], first_line: int) -> list[Row]:
        """A row for every line that is not blank."""
        return [
            parse_line(line, f"{self.name}:{number}")
            for number, line in enumerate(lines, start=first_line)
            if line.strip()
        ]


class JsonList(JsonFile):
    """A file that holds one JSON list of objects."""

    def scan(self) -> SourceIndex:
        """The whole list is one chunk."""
        content = self.content()
        num_rows = len(self.rows(content))
        chunks = (Chunk(self.name, 0, num_rows),) if num_rows else ()
        return SourceIndex(chunks, hashlib.sha256(content).hexdigest())

    def read(self, chunk: Chunk) -> list[Row]:
        """Parses the file."""
        return self.rows(self.content())

    def content(self) -> bytes:
        """The text of the file."""
        with self.open_text() as file:
            return file.read()

    def rows(self, content: bytes) -> list[Row]:
        """Every element of the list.

        Raises:
            ValueError: It is not JSON, or no list.
        """
        try:
            loaded = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{self.name}: not JSON: {error}. One object a line belongs in a .jsonl file.") from error
        if not isinstance(loaded, list):
            raise ValueError(f"{self.name}: holds a {type(loaded).__name__}; a .json file must hold a list of objects.")
        return [as_row(values, f"{self.name}: element {number}") for number, values in enumerate(loaded)]


def as_row(values: object, where: str) -> Row:
    """A parsed record as a row; anything but an object is a problem of that row."""
    if not isinstance(values, dict):
        return Row({}, where, f"a {type(values).__name__}, not an object; each row must be one object.")
    return Row(values, where)


def parse_line(line: bytes, where: str) -> Row:
    """One line of a jsonl file; what is wrong with it is kept in the row."""
    try:
        return as_row(json.loads(line), where)
    except (ValueError, RecursionError) as error:
        return Row({}, where, f"not JSON: {error}. Each line must hold one object, in UTF-8.")
