"""All rows of some sources, numbered; that number is a row's sample id.

The indexes of files can be kept in a folder, so that a restart does not scan them again.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import accumulate, zip_longest
from pathlib import Path
from typing import Any

from lift_ds.data.settings import ColumnsConfig

from .filesystem import is_remote
from .source import Chunk, Row, Source, SourceIndex, SourceSignature

SCAN_THREADS = 8
INDEX_VERSION = 1


@dataclass(frozen=True)
class SourceGroup:
    """Sources that are mixed as one.

    Args:
        weight: Share of the draws, relative to the other groups'; `None` leaves it to the number of rows.
        columns: The mapping of its rows, or `None` to detect it.
    """

    name: str
    sources: Sequence[Source]
    weight: float | None = None
    columns: ColumnsConfig | None = None


@dataclass(frozen=True)
class Group:
    """Where the rows of a `SourceGroup` stand in the manifest: at least one, in chunks that follow each other."""

    name: str
    weight: float | None
    first_chunk: int
    num_chunks: int
    num_rows: int
    columns: ColumnsConfig | None = None


@dataclass(frozen=True)
class _Scanned:
    """A source with its index; `is_new` where that was made now, and not read from the cache."""

    source: Source
    index: SourceIndex
    signature: SourceSignature | None
    is_new: bool


@dataclass(frozen=True)
class FoundSource:
    """What a manifest has found in a source, for other processes.

    Args:
        name: The source's; of a file its path, where it was read.
        size: Bytes of a file of that machine.
        index: Its chunks.
    """

    name: str
    size: str | None
    index: SourceIndex


class Manifest:
    """All chunks of some sources, with every row numbered.

    Attributes:
        chunks: In order.
        first_ids: Sample id of each chunk's first row, and the number of rows at the end.
        groups: Consecutive ranges of chunks, one for each group of sources.

    Args:
        sources: Groups, or plain sources as one group without a weight.
        cache_dir: Folder of kept indexes; see `save_indexes`.
        found: What another process has found in the same sources, its `found`; nothing is scanned then.

    Raises:
        ValueError: A group has no row, or a file cannot be read as its ending says.
        ConnectionError: A remote file could not be reached.
    """

    def __init__(
        self,
        sources: Sequence[Source] | Sequence[SourceGroup],
        cache_dir: Path | None = None,
        found: Sequence[FoundSource] | None = None,
    ) -> None:
        self.cache_dir = cache_dir
        groups = [source for source in sources if isinstance(source, SourceGroup)]
        plain = [source for source in sources if isinstance(source, Source)]
        given = groups or [SourceGroup(", ".join(source.name for source in plain), plain)]
        listed = [source for group in given for source in group.sources]
        if found is not None:
            self._scanned = [_adopt(source, theirs) for source, theirs in zip(listed, found, strict=True)]
        else:
            with ThreadPoolExecutor(SCAN_THREADS) as pool:  # what a remote file costs is waiting
                self._scanned = list(pool.map(self._scan, listed))
        self.chunks = [chunk for scanned in self._scanned for chunk in scanned.index.chunks]
        self._owners = [scanned.source for scanned in self._scanned for _ in scanned.index.chunks]
        self.first_ids = list(accumulate((chunk.num_rows for chunk in self.chunks), initial=0))
        self.num_rows = self.first_ids[-1]
        self.groups = self._place(given)
        named = [(Path(each.source.name).name, each.index.content_hash, _numbers(each.index)) for each in self._scanned]
        self.digest = hashlib.sha256(json.dumps(named).encode()).hexdigest()  # without the folders they are in

    def _scan(self, source: Source) -> _Scanned:
        signature = source.signature()
        if self.cache_dir is not None and signature is not None:
            kept = _load_index(self.cache_dir, source.name, signature)
            if kept is not None:
                return _Scanned(source, kept, signature, is_new=False)
        return _Scanned(source, source.scan(), signature, is_new=True)

    def _place(self, given: Sequence[SourceGroup]) -> list[Group]:
        groups, first_chunk, scanned = [], 0, iter(self._scanned)
        for group in given:
            chunks = [chunk for _ in group.sources for chunk in next(scanned).index.chunks]
            num_rows = sum(chunk.num_rows for chunk in chunks)
            if num_rows == 0:
                names = ", ".join(source.name for source in group.sources)
                raise ValueError(f"no rows in {names or group.name}; at least one is needed.")
            groups.append(Group(group.name, group.weight, first_chunk, len(chunks), num_rows, group.columns))
            first_chunk += len(chunks)
        return groups

    def read(self, chunk_index: int) -> Sequence[Row]:
        """The rows of chunk number `chunk_index`.

        Raises:
            ValueError: It cannot be decoded, or has not the rows that the index lists.
            ConnectionError: A remote file could not be reached.
        """
        chunk = self.chunks[chunk_index]
        rows = self._owners[chunk_index].read(chunk)
        if len(rows) != chunk.num_rows:
            raise ValueError(
                f"{chunk.source}: {len(rows)} rows where {chunk.num_rows} were listed; the file was changed while it "
                "was in use. Leave data files alone during a run, and start again from a checkpoint."
            )
        return rows

    @property
    def found(self) -> list[FoundSource]:
        """What was found of each source, in order."""
        return [FoundSource(each.source.name, _size(each.source), each.index) for each in self._scanned]

    @cached_property
    def files(self) -> dict[str, str]:
        """Content hash by file name, in order; files of the same name are numbered."""
        hashes: dict[str, str] = {}
        times: Counter[str] = Counter()
        for scanned in self._scanned:
            name = Path(scanned.source.name).name
            times[name] += 1
            hashes[name if times[name] == 1 else f"{name} ({times[name]})"] = scanned.index.content_hash
        return hashes

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps to know the data again: `digest`, and `files` as content hash by name."""
        return {"digest": self.digest, "files": dict(self.files)}

    def find_changes(self, state: dict[str, Any]) -> list[str]:
        """What differs from a checkpoint's `state`, a line for each file; empty where the rows are the same."""
        if state["digest"] == self.digest:
            return []
        before, now = state["files"], self.files
        changes = [f"{name} is missing" for name in before if name not in now]
        changes += [f"{name} is new" for name in now if name not in before]
        changes += [f"{name} has changed" for name in now if name in before and now[name] != before[name]]
        return changes or ["the same files are in another order, or cut into other chunks"]

    def save_indexes(self) -> None:
        """Keeps the indexes that were made anew in `cache_dir`, if there is one.

        Not done when the manifest is made, before the run has a folder.

        Raises:
            OSError: The folder cannot be written.
        """
        for scanned in self._scanned:
            if self.cache_dir is not None and scanned.is_new and scanned.signature is not None:
                _save_index(self.cache_dir, scanned.signature, scanned.index)


def check_same_files(groups: Sequence[SourceGroup], found: Sequence[FoundSource]) -> None:
    """Compares the files of this machine with those that rank 0 has found on its own, by name and size.

    Raises:
        ValueError: They are not the same.
    """
    sources = [source for group in groups for source in group.sources]
    here = [(Path(source.name).name, _size(source)) for source in sources]
    there = [(Path(each.name).name, each.size) for each in found]
    if here == there:
        return
    differ = [
        f"{_shown(pair[0])} here, {_shown(pair[1])} there" for pair in zip_longest(here, there) if pair[0] != pair[1]
    ]
    raise ValueError(
        f"data.path: other files than on rank 0's machine ({len(differ)}): {differ[0]}; put the same files on every "
        "machine, or on a disk that all of them see."
    )


def _shown(file: tuple[str, str | None] | None) -> str:
    return "no file" if file is None else f"{file[0]} ({file[1]} bytes)"


def _size(source: Source) -> str | None:
    """Bytes of a file of this machine; `None` for what is the same on every machine."""
    signature = None if is_remote(source.name) else source.signature()
    return None if signature is None else signature.marks.get("size")


def _adopt(source: Source, theirs: FoundSource) -> _Scanned:
    """A source with the index that another process has made, for which the file may be in another folder."""
    chunks = (
        replace(chunk, source=source.name) if chunk.source == theirs.name else chunk for chunk in theirs.index.chunks
    )
    return _Scanned(source, replace(theirs.index, chunks=tuple(chunks)), None, is_new=False)


def _numbers(index: SourceIndex) -> list[list[int]]:
    return [[chunk.start, chunk.num_rows, chunk.first_line, chunk.num_bytes] for chunk in index.chunks]


def _index_path(cache_dir: Path, signature: SourceSignature) -> Path:
    return cache_dir / f"{hashlib.sha256(signature.path.encode()).hexdigest()[:32]}.json"


def _load_index(cache_dir: Path, name: str, signature: SourceSignature) -> SourceIndex | None:
    try:
        kept = json.loads(_index_path(cache_dir, signature).read_text(encoding="utf-8"))
        if kept["version"] != INDEX_VERSION or kept["signature"] != asdict(signature):
            return None
        chunks = tuple(Chunk(name, *map(int, numbers)) for numbers in kept["chunks"])
        return SourceIndex(chunks, str(kept["content_hash"]))
    except (OSError, ValueError, KeyError, TypeError):  # torn, foreign or missing: the file is scanned
        return None


def _save_index(cache_dir: Path, signature: SourceSignature, index: SourceIndex) -> None:
    """Keeps an index; a reader sees the old one or the new one, never a part."""
    cache_dir.mkdir(parents=True, exist_ok=True)
    kept = {
        "version": INDEX_VERSION,
        "signature": asdict(signature),
        "content_hash": index.content_hash,
        "chunks": _numbers(index),
    }
    with tempfile.NamedTemporaryFile("w", dir=cache_dir, suffix=".part", delete=False, encoding="utf-8") as file:
        json.dump(kept, file)
    os.replace(file.name, _index_path(cache_dir, signature))
