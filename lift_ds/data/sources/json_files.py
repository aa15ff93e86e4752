"""JSON Lines and JSON lists, plain and compressed."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import IO

import pyarrow as pa

from lift_ds.storage.file_diagnosis import HEAD_BYTES, diagnose
from lift_ds.text_files import BYTE_ORDER_MARK, BadKeyError, parse_elements, parse_line

from .filesystem import FileSource, Retry
from .source import Chunk, Row, SourceIndex, locate_errors

JSONL_CHUNK_ROWS = 256
COMMA_BEFORE_END = re.compile(rb",\s*\]\s*$")
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}


class JsonFile(FileSource):
    """A file of JSON text, decompressed where its name ends in .gz or .zst."""

    def __init__(self, name: str, retry: Retry) -> None:
        super().__init__(name, retry)
        ending = name.partition("?")[0].lower() if "://" in name else name.lower()
        self.compression = next((kind for end, kind in COMPRESSIONS.items() if ending.endswith(end)), None)

    @contextmanager
    def open_text(self) -> Iterator[IO[bytes]]:
        """The whole file, decompressed, from its beginning."""
        with self.file.open(is_sequential=True) as file:
            if self.compression is None:
                yield file
            else:
                where = locate_errors(self.name, self.compression, self.file.diagnosis)
                with where, pa.PythonFile(file, mode="r") as packed:
                    yield io.BufferedReader(pa.CompressedInputStream(packed, self.compression))


class JsonLines(JsonFile):
    """One JSON object a line; blank lines are no rows."""

    def scan(self) -> SourceIndex:
        """Counts lines and hashes them in one pass; a compressed file is one chunk, as it has no way in."""
        hasher, chunks = hashlib.sha256(), []
        start, first_line, num_rows, offset = 0, 1, 0, 0
        with self.open_text() as file:
            for number, line in enumerate(file, start=1):
                if number == 1:
                    self._check_beginning(line)
                hasher.update(line)
                offset += len(line)
                num_rows += bool(line.strip())
                if num_rows == JSONL_CHUNK_ROWS and self.compression is None:
                    chunks.append(Chunk(self.name, start, num_rows, first_line, offset - start))
                    start, first_line, num_rows = offset, number + 1, 0
        if num_rows:
            chunks.append(Chunk(self.name, start, num_rows, first_line, offset - start))
        return SourceIndex(tuple(chunks), hasher.hexdigest())

    def _check_beginning(self, line: bytes) -> None:
        """Judges a file by its first line, so that what is no data at all is no file of bad rows."""
        found = None
        if not line.startswith(b'{"'):
            found = self.file.diagnosis() if self.compression is None else diagnose(line[:HEAD_BYTES])
        if found is None and line.removeprefix(BYTE_ORDER_MARK).strip() in (b"{", b"["):
            found = "is one JSON text over several lines; write one object a line, or name a list of objects .json"
        if found is not None:
            raise ValueError(f"{self.name} {found}.")

    def read(self, chunk: Chunk) -> list[Row]:
        """Parses the lines of a segment."""
        if self.compression is not None:
            with self.open_text() as text:
                return self._rows(text, chunk.first_line)
        with self.file.open() as file:
            file.seek(chunk.start)
            return self._rows(file.read(chunk.num_bytes).split(b"\n"), chunk.first_line)

    def _rows(self, lines: Iterable[bytes], first_line: int) -> list[Row]:
        return [
            _read_line(line, f"{self.name}:{number}")
            for number, line in enumerate(lines, start=first_line)
            if line.strip()
        ]


class JsonList(JsonFile):
    """A file that holds one JSON list of objects."""

    def scan(self) -> SourceIndex:
        """The whole list is one chunk."""
        content = self._content()
        num_rows = len(self._rows(content))
        chunks = (Chunk(self.name, 0, num_rows),) if num_rows else ()
        return SourceIndex(chunks, hashlib.sha256(content).hexdigest())

    def read(self, chunk: Chunk) -> list[Row]:
        """Parses the file."""
        return self._rows(self._content())

    def _content(self) -> bytes:
        with self.open_text() as file:
            return file.read()

    def _rows(self, content: bytes) -> list[Row]:
        """Every element of the list.

        Raises:
            ValueError: It is not JSON, or no list; what is wrong with one element is kept in its row.
        """
        try:
            elements = parse_elements(content.decode(json.detect_encoding(content)))
        except TypeError as error:
            raise ValueError(f"{self.name}: {error}") from error
        except (ValueError, RecursionError) as error:
            found = diagnose(content[:HEAD_BYTES])
            if found is not None:
                raise ValueError(f"{self.name} {found}.") from error
            remedy = "One object a line belongs in a .jsonl file."
            if COMMA_BEFORE_END.search(content):
                remedy = "Remove the comma before the closing bracket."
            raise ValueError(f"{self.name}: not JSON: {error}. {remedy}") from error
        return [
            _as_row(values, f"{self.name}: element {number}", problem)
            for number, (values, problem) in enumerate(elements)
        ]


def _as_row(values: object, where: str, problem: str | None = None) -> Row:
    """A parsed record as a row; anything but an object is a problem of that row."""
    if problem is not None:
        return Row({}, where, f"{problem}.")
    if not isinstance(values, dict):
        return Row({}, where, f"a {type(values).__name__}, not an object; each row must be one object.")
    return Row(values, where)


def _read_line(line: bytes, where: str) -> Row:
    try:
        return _as_row(parse_line(line), where)
    except BadKeyError as error:
        return Row({}, where, f"{error}.")
    except (ValueError, RecursionError) as error:
        return Row({}, where, f"not JSON: {error}. Each line must hold one object, in UTF-8.")
