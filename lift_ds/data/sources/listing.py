"""From what a config names (files, folders, globs, URLs, hub data sets, built-in names) to sources."""

from __future__ import annotations

import glob
import os
import warnings
from collections.abc import Callable
from pathlib import Path

from lift_ds.data.settings import SourceConfig

from .builtin import BUILTIN_PREFIX, Builtin
from .columnar import Arrow, Parquet
from .filesystem import DataFile, Retry, is_remote, open_filesystem
from .folders import LISTS, SPLITS_NAME, FolderView, choose_files, is_cache, shorten
from .hub import HUB_PREFIX, resolve_hub
from .json_files import COMPRESSIONS, JsonLines, JsonList
from .manifest import SourceGroup
from .source import Source

FILE_KINDS: dict[str, Callable[[str, Retry], Source]] = {
    ".jsonl": JsonLines,
    ".json": JsonList,
    ".parquet": Parquet,
    ".arrow": Arrow,
    ".feather": Arrow,
    ".jsonl.gz": JsonLines,
    ".jsonl.zst": JsonLines,
    ".json.gz": JsonList,
    ".json.zst": JsonList,
}
# what `datasets` and tools/prepare_data.py write beside their rows
NO_DATA_NAMES = ("dataset_info.json", "dataset_infos.json", SPLITS_NAME, *LISTS)


def _ending_of(path: str) -> str | None:
    """The known ending of a path, or `None`; the query of a URL is not part of its name."""
    name = (path.partition("?")[0] if is_remote(path) else path).lower()
    return next((ending for ending in FILE_KINDS if name.endswith(ending)), None)


def open_groups(
    sources: list[SourceConfig], seed: int, split: str, builtin_rows: int, retry: Retry | None = None
) -> list[SourceGroup]:
    """One group for each configured source; the other arguments and errors are those of `open_sources`."""
    groups = []
    for config in sources:
        paths = config.paths()
        columns = config.columns if config.columns.named() else None
        opened = open_sources(paths, seed, split, builtin_rows, retry)
        groups.append(SourceGroup(", ".join(paths), opened, config.weight, columns))
    return groups


def open_sources(
    paths: list[str], seed: int, split: str, builtin_rows: int, retry: Retry | None = None
) -> list[Source]:
    """Sources for files, globs, folders, URLs, hub data sets and built-in names.

    `split` is also that of folders that hold several.

    Raises:
        ValueError: A path does not exist, or its ending is not known.
        ConnectionError: A server did not answer.
    """
    retry = retry or Retry()
    sources: list[Source] = []
    for path in paths:
        if path.startswith(BUILTIN_PREFIX):
            sources.append(Builtin(path, seed, split, builtin_rows))
        elif path.startswith(HUB_PREFIX):
            sources += [_open_hub_file(file, retry) for file in resolve_hub(path, retry, set(FILE_KINDS))]
        else:
            sources += [FILE_KINDS[str(_ending_of(file))](file, retry) for file in _expand(path, retry, split)]
    _warn_of_compressed([source.name for source in sources])
    return sources


def _open_hub_file(file: str, retry: Retry) -> Source:
    """The source of a file. Hub data sets keep JSON lines in .json files too: the first byte tells."""
    kind = FILE_KINDS[str(_ending_of(file))]
    if kind is JsonList:
        with JsonList(file, retry).open_text() as text:
            if text.read(64).lstrip().startswith(b"{"):
                return JsonLines(file, retry)
    return kind(file, retry)


def _warn_of_compressed(names: list[str]) -> None:
    packed = [name for name in names if (_ending_of(name) or "").endswith(tuple(COMPRESSIONS))]
    if packed:
        others = f" and {len(packed) - 1} more" if len(packed) > 1 else ""
        warnings.warn(
            f"{packed[0]}{others}: a compressed file is one chunk: all of it is read, and kept in memory, to get any "
            "row. Write parquet or plain .jsonl where it is large.",
            stacklevel=2,
        )


def _expand(path: str, retry: Retry, split: str) -> list[str]:
    """The files behind one path, glob or folder (with all folders in it), sorted; empty ones are left out, and said."""
    files, is_listing = _list_remote(path, retry, split) if is_remote(path) else _list_local(path, split)
    if not files:
        raise ValueError(f"data.path={path!r}: no such file, or no {', '.join(FILE_KINDS)} file in it.")
    for file in files:
        if _ending_of(file) is None:
            raise ValueError(f"data.path: {file}: unknown ending; allowed: {', '.join(FILE_KINDS)}.")
    empty = [file for file in files if DataFile(file, retry).size == 0]
    if empty and (not is_listing or len(empty) == len(files)):
        raise ValueError(f"data.path: {empty[0]} is empty.")
    for file in empty:
        warnings.warn(f"{file} is empty: no rows come from it.", stacklevel=2)
    left_out = set(empty)
    return [file for file in files if file not in left_out]


def _list_local(path: str, split: str) -> tuple[list[str], bool]:
    """Files of this machine, and whether they were listed rather than named."""
    folder = Path(path)
    if not folder.is_dir():
        if glob.has_magic(path) and not folder.is_file():
            files = [file for file in glob.glob(path, recursive=True) if Path(file).is_file()]
            return _without_caches(path, files), True
        return [path] * folder.is_file(), False
    view = FolderView(path, _visible(_names_below(folder)), lambda name: (folder / name).read_bytes(), _is_data)
    return [str(folder / name) for name in choose_files(view, split)], True


def _names_below(folder: Path) -> list[str]:
    """All files of a folder and the folders in it, also those that links lead to, relative to it."""
    names, seen = [], {folder.resolve()}
    for parent, folders, files in os.walk(folder, followlinks=True):
        inner = {name: (Path(parent) / name).resolve() for name in folders}
        folders[:] = [name for name in folders if inner[name] not in seen]  # a link to a folder above has no end
        seen.update(inner.values())
        names += [(Path(parent) / name).relative_to(folder).as_posix() for name in files]
    return [name for name in names if (folder / name).is_file()]


def _list_remote(path: str, retry: Retry, split: str) -> tuple[list[str], bool]:
    """Remote files with their protocol, and whether they were listed rather than named.

    A `?` is the query of a URL here, not a wild card.
    """
    filesystem, inner = open_filesystem(path)
    if glob.has_magic(path.replace("?", "")):
        found = retry.call(lambda: filesystem.glob(inner), path)
        return _without_caches(path, [str(filesystem.unstrip_protocol(name)) for name in found]), True
    try:
        info = retry.call(lambda: filesystem.info(inner), path)
    except FileNotFoundError:
        return [], False
    if info["type"] != "directory" and not path.endswith("/"):
        return [path], False
    found = [str(name) for name in retry.call(lambda: filesystem.find(inner), path)]
    prefix = filesystem._strip_protocol(path).rstrip("/") + "/"
    full = {name.removeprefix(prefix).lstrip("/"): name for name in found}
    view = FolderView(
        path.rstrip("/"),
        _visible(list(full)),
        lambda name: bytes(retry.call(lambda: filesystem.cat_file(full[name]), f"{path}/{name}")),
        _is_data,
    )
    return [str(filesystem.unstrip_protocol(full[name])) for name in choose_files(view, split)], True


def _without_caches(path: str, files: list[str]) -> list[str]:
    """The files of a glob, sorted, without the caches that `datasets` leaves beside its rows; these are said."""
    rows = sorted(file for file in files if not is_cache(file))
    if not rows or len(rows) == len(files):
        return sorted(files)
    caches = sorted(set(files).difference(rows))
    warnings.warn(f"{path}: caches of `datasets` that are not read: {shorten(caches)}.", stacklevel=2)
    return rows


def _visible(names: list[str]) -> list[str]:
    return sorted(name for name in names if not any(part.startswith(".") for part in name.split("/")))


def _is_data(relative: str) -> bool:
    return _ending_of(relative) is not None and relative.rpartition("/")[2] not in NO_DATA_NAMES
