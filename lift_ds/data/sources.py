"""Files and built-in tasks as rows: each source lists its chunks once, and reads one chunk at a time.

A chunk is what is read in one go: a segment of a jsonl file, a row group of a parquet file, a whole JSON list, a range
of a built-in task. The manifest numbers all rows of all chunks; that number is a row's sample id.
"""

from __future__ import annotations

import glob
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from .tasks import TASKS, draw_item, instruction, pretraining_text

JSONL_CHUNK_ROWS = 256
BUILTIN_CHUNK_ROWS = 512
BUILTIN_PREFIX = "builtin:"


@dataclass(frozen=True)
class Row:
    """One record and where it stands, for messages (`file:line`, or the file and the row number)."""

    values: dict[str, Any]
    where: str


@dataclass(frozen=True)
class Chunk:
    """A part of a source: `start` is a byte offset, row group or first row; `first_line` counts from 1."""

    source: str
    start: int
    num_rows: int
    first_line: int = 1
    num_bytes: int = 0


class Source(ABC):
    """A file, or a built-in task, that can list its chunks and read one of them."""

    def __init__(self, name: str) -> None:
        """Stores the path or built-in name."""
        self.name = name

    @abstractmethod
    def chunks(self) -> list[Chunk]:
        """All chunks in file order."""

    @abstractmethod
    def read(self, chunk: Chunk) -> list[Row]:
        """The rows of one chunk."""


class JsonLines(Source):
    """One JSON object a line; blank lines are no rows."""

    def chunks(self) -> list[Chunk]:
        """Scans for newlines once."""
        found, start, first_line, num_rows, offset = [], 0, 1, 0, 0
        with open(self.name, "rb") as file:
            for number, line in enumerate(file, start=1):
                offset += len(line)
                num_rows += bool(line.strip())
                if num_rows == JSONL_CHUNK_ROWS:
                    found.append(Chunk(self.name, start, num_rows, first_line, offset - start))
                    start, first_line, num_rows = offset, number + 1, 0
        if num_rows:
            found.append(Chunk(self.name, start, num_rows, first_line, offset - start))
        return found

    def read(self, chunk: Chunk) -> list[Row]:
        """Parses the lines of a segment."""
        with open(self.name, "rb") as file:
            file.seek(chunk.start)
            lines = file.read(chunk.num_bytes).split(b"\n")
        return [
            Row(parse_object(line, where), where)
            for number, line in enumerate(lines, start=chunk.first_line)
            if line.strip() and (where := f"{self.name}:{number}")
        ]


class JsonList(Source):
    """A file that holds one JSON list of objects."""

    def chunks(self) -> list[Chunk]:
        """The whole list is one chunk."""
        rows = self.rows()
        return [Chunk(self.name, 0, len(rows))] if rows else []

    def read(self, chunk: Chunk) -> list[Row]:
        """Parses the file."""
        return self.rows()

    def rows(self) -> list[Row]:
        """Every element of the list."""
        try:
            loaded = json.loads(Path(self.name).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{self.name}: not JSON: {error}. One object a line belongs in a .jsonl file.") from error
        if not isinstance(loaded, list):
            raise ValueError(f"{self.name}: holds a {type(loaded).__name__}; a .json file must hold a list of objects.")
        for number, values in enumerate(loaded):
            if not isinstance(values, dict):
                raise ValueError(f"{self.name}: element {number} is a {type(values).__name__}, not an object.")
        return [Row(values, f"{self.name}: element {number}") for number, values in enumerate(loaded)]


class Parquet(Source):
    """A parquet file; its row groups are the chunks."""

    def chunks(self) -> list[Chunk]:
        """Reads the footer only."""
        try:
            footer = pq.read_metadata(self.name)
        except Exception as error:
            raise ValueError(f"{self.name}: cannot be read as parquet: {error}. Is the file whole?") from error
        sizes = [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]
        first_rows = accumulate(sizes, initial=0)
        return [
            Chunk(self.name, group, size, first_line=first)
            for group, (size, first) in enumerate(zip(sizes, first_rows, strict=False))
            if size
        ]

    def read(self, chunk: Chunk) -> list[Row]:
        """Decodes one row group."""
        with pq.ParquetFile(self.name) as file:
            records = file.read_row_group(chunk.start).to_pylist()
        return [Row(values, f"{self.name}: row {chunk.first_line + number}") for number, values in enumerate(records)]


FILE_KINDS: dict[str, Callable[[str], Source]] = {".jsonl": JsonLines, ".json": JsonList, ".parquet": Parquet}


class Builtin(Source):
    """Rows of the built-in tasks: `builtin:reasoning` (all of them) or a task's name.

    `builtin:pretraining` and `builtin:instructions` are what the built-in base was made with.

    `builtin:reasoning-shuffled` answers every question with another item's response: the control that shows how much
    of a gain is the format alone.
    """

    def __init__(self, name: str, seed: int, split: str, num_rows: int) -> None:
        """Stores what names the rows; see `draw_item`."""
        super().__init__(name)
        self.seed, self.split, self.num_rows = seed, split, num_rows
        kind = name.removeprefix(BUILTIN_PREFIX)
        self.is_shuffled = kind.endswith("-shuffled")
        self.kind = kind.removesuffix("-shuffled")
        self.tasks = list(TASKS) if self.kind == "reasoning" else [self.kind]
        allowed = ["pretraining", "instructions", "reasoning", "reasoning-shuffled", *TASKS]
        if kind not in allowed:
            names = ", ".join(BUILTIN_PREFIX + each for each in allowed)
            raise ValueError(f"data.path={name!r}: no such built-in data; allowed: {names}, or files.")

    def chunks(self) -> list[Chunk]:
        """Equal ranges of rows."""
        starts = range(0, self.num_rows, BUILTIN_CHUNK_ROWS)
        label = f"{self.name}/{self.seed}/{self.split}"
        return [Chunk(label, start, min(BUILTIN_CHUNK_ROWS, self.num_rows - start)) for start in starts]

    def read(self, chunk: Chunk) -> list[Row]:
        """Generates a range of rows."""
        rows = range(chunk.start, chunk.start + chunk.num_rows)
        return [Row(self.values(row), f"{chunk.source}: row {row}") for row in rows]

    def values(self, row: int) -> dict[str, Any]:
        """The record of one row: tasks take turns."""
        if self.kind == "pretraining":
            return {"text": pretraining_text(self.seed, self.split, row)}
        if self.kind == "instructions":
            return dict(zip(("prompt", "response"), instruction(self.seed, self.split, row), strict=True))
        task = TASKS[self.tasks[row % len(self.tasks)]]
        index = row // len(self.tasks)
        item = draw_item(task, self.seed, self.split, index)
        answered = draw_item(task, self.seed, self.split, index + self.num_rows) if self.is_shuffled else item
        return {"prompt": item.question, "response": answered.response}


@dataclass(frozen=True)
class Group:
    """A source of a mixture."""

    name: str
    weight: float | None
    first_chunk: int
    num_chunks: int
    num_rows: int


class Manifest:
    """All chunks of some sources, with every row numbered."""

    def __init__(self, sources: list[Source]) -> None:
        """Lists the chunks.

        Raises:
            ValueError: There is no row at all, or a file cannot be read as its ending says.
        """
        listed = [(source, chunk) for source in sources for chunk in source.chunks()]
        self.chunks = [chunk for _, chunk in listed]
        self.by_name = {chunk.source: source for source, chunk in listed}
        self.first_ids = list(accumulate((chunk.num_rows for chunk in self.chunks), initial=0))
        self.num_rows = self.first_ids[-1]
        if self.num_rows == 0:
            raise ValueError(f"no rows in {', '.join(source.name for source in sources)}; at least one is needed.")

    @property
    def groups(self) -> list[Group]:
        """One."""
        return [Group("data", None, 0, len(self.chunks), self.num_rows)]

    def state(self) -> dict[str, Any]:
        """Digest."""
        return {"digest": self.digest}

    def find_changes(self, state: dict[str, Any]) -> list[str]:
        """What changed."""
        return [] if state["digest"] == self.digest else ["data files"]

    def read(self, chunk_index: int) -> list[Row]:
        """The rows of chunk number `chunk_index`."""
        chunk = self.chunks[chunk_index]
        return self.by_name[chunk.source].read(chunk)

    @cached_property
    def digest(self) -> str:
        """Hash of the chunk list: equal where the same rows have the same numbers."""
        listed = [asdict(chunk) | {"source": Path(chunk.source).name} for chunk in self.chunks]
        return hashlib.sha256(json.dumps(listed, sort_keys=True).encode()).hexdigest()


def parse_object(line: bytes, where: str) -> dict[str, Any]:
    """One line of a jsonl file.

    Raises:
        ValueError: It is no JSON object; the message names file and line.
    """
    try:
        values = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where}: not JSON: {error}. Each line must hold one object.") from error
    if not isinstance(values, dict):
        raise ValueError(f"{where}: a {type(values).__name__}, not an object; each line must hold one object.")
    return values


def open_sources(paths: list[str], seed: int, split: str, builtin_rows: int) -> list[Source]:
    """Sources for files, globs, folders and built-in names.

    Args:
        paths: As given in `data.path`.
        seed: Data seed of built-in tasks.
        split: Split of built-in tasks.
        builtin_rows: How many rows a built-in source has.

    Raises:
        ValueError: A path does not exist, or its ending is not one of .jsonl, .json, .parquet.
    """
    sources: list[Source] = []
    for path in paths:
        if path.startswith(BUILTIN_PREFIX):
            sources.append(Builtin(path, seed, split, builtin_rows))
            continue
        for file in expand(path):
            sources.append(FILE_KINDS[Path(file).suffix](file))
    return sources


def expand(path: str) -> list[str]:
    """The files behind one path, glob or folder, sorted.

    Raises:
        ValueError: Nothing is there, or a file's ending is not known.
    """
    if Path(path).is_dir():
        found = sorted(str(file) for file in Path(path).iterdir() if file.suffix in FILE_KINDS)
    else:
        found = sorted(glob.glob(path)) if glob.has_magic(path) else [path] * Path(path).is_file()
    if not found:
        raise ValueError(f"data.path={path!r}: no such file, or no {', '.join(FILE_KINDS)} file in it.")
    for file in found:
        if Path(file).suffix not in FILE_KINDS:
            raise ValueError(f"data.path: {file}: unknown ending; allowed: {', '.join(FILE_KINDS)}.")
        if Path(file).stat().st_size == 0:
            raise ValueError(f"data.path: {file} is empty.")
    return found
