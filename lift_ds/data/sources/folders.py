"""Which files of a folder are read: those that it lists itself, or those of one split.

A folder's own list comes first: `state.json` of `save_to_disk`, whose `map` and `shuffle` leave caches beside the rows,
`prepared.json` of tools/prepare_data.py, `dataset_dict.json`, and the `data_files` in the card (README.md) of a data
set. Without one, names tell the splits. Splits are chosen, never mixed; what is not read is said, once.

Source: `datasets` 5.2, `data_files.py`, for the words that name splits and the order in which they are looked for.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Any

from lift_ds.text_files import load_json

from .card import CARD_NAME, Card, read_card

STATE_NAME, PREPARED_NAME, SPLITS_NAME = "state.json", "prepared.json", "dataset_dict.json"
LISTS = {STATE_NAME: ("_data_files", "filename"), PREPARED_NAME: ("shards", "name")}  # key, and key of each entry
CACHE_FILE = re.compile(r"cache-[0-9a-f]{16}\w*\.arrow")
SHARD_OF_SPLIT = re.compile(r"data/([^/]+)-\d{5}-of-\d{5}[^/]*\.[^/]*")
SEPARATORS = re.compile(r"[-._ 0-9]+")
SPLIT_WORDS = {
    "train": {"train", "training"},
    "validation": {"validation", "valid", "dev", "val"},
    "test": {"test", "testing", "eval", "evaluation"},
}
LISTED_NAMES = 8
REMEDY = "Name the files of one, as a glob, or the data set as hub:FOLDER@SPLIT (a folder on this machine)"


@dataclass(frozen=True)
class FolderView:
    """A folder, on this machine or a remote one.

    Args:
        names: All files in it and its folders that are not hidden, relative to it, sorted.
        read: The bytes of one of them.
    """

    path: str
    names: list[str]
    read: Callable[[str], bytes]
    is_data: Callable[[str], bool]

    def load(self, name: str) -> Any:
        """A JSON file of the folder.

        Raises:
            ValueError: It is not JSON.
        """
        try:
            return load_json(self.read(name).decode("utf-8-sig"))
        except ValueError as error:
            raise ValueError(f"data.path: {self.path}/{name}: not JSON: {error}; copy the folder again.") from error

    def below(self, name: str) -> FolderView:
        """A folder in this one."""
        prefix = f"{name}/"
        names = [inner.removeprefix(prefix) for inner in self.names if inner.startswith(prefix)]
        return FolderView(f"{self.path}/{name}", names, lambda inner: self.read(prefix + inner), self.is_data)


def choose_files(folder: FolderView, split: str) -> list[str]:
    """The names of a folder's files that are read; warns of data files that are not.

    Raises:
        ValueError: A file that the folder lists is missing, or none of its several splits is the wanted one.
    """
    of_splits = _find_splits(folder)
    if of_splits is None:
        chosen, why = _unsplit_files(folder), "caches of `datasets`, or not in the folder's own list"
    else:
        name = next(iter(of_splits)) if len(of_splits) == 1 else choose_split(of_splits, split, folder.path, REMEDY)
        chosen, why = of_splits[name](), f"read is the split {name!r}"
    left = sorted(set(filter(folder.is_data, folder.names)).difference(chosen))
    if left and chosen:
        warnings.warn(f"{folder.path}: data files that are not read ({why}): {shorten(left)}.", stacklevel=2)
    return chosen


def choose_split(splits: Collection[str], wanted: str, where: str, remedy: str) -> str:
    """The split that is wanted.

    Raises:
        ValueError: It is not there; the message names those that are.
    """
    if wanted not in splits:
        raise ValueError(f"data.path={where!r}: no split {wanted!r}; there are: {', '.join(splits)}. {remedy}.")
    return wanted


def _find_splits(folder: FolderView) -> dict[str, Callable[[], list[str]]] | None:
    """What lists the files of each split, or raises where one is missing; `None` where nothing tells splits apart."""
    if SPLITS_NAME in folder.names:
        facts = folder.load(SPLITS_NAME)
        if not isinstance(facts, dict) or not facts.get("splits"):
            raise ValueError(f"data.path: {folder.path}/{SPLITS_NAME}: lists no splits; copy the folder again.")
        return {str(name): partial(_saved_files, folder, str(name)) for name in facts["splits"]}
    if STATE_NAME in folder.names or PREPARED_NAME in folder.names:
        return None
    card = read_card(folder.path, folder.read(CARD_NAME)) if CARD_NAME in folder.names else Card()
    names = [name for name in _unsplit_files(folder) if name.startswith(card.data_dir)]
    if card.patterns is not None:
        return {split: partial(card.find_files, folder.path, split, names) for split in card.patterns}
    found = {split: files for split, files in _name_splits(names).items() if files}
    unnamed = sorted(set(names).difference(*found.values()))
    if found and unnamed and "train" not in found:
        named = sorted(set(names).difference(unnamed))
        raise ValueError(
            f"data.path={folder.path!r}: {shorten(named)}: named as {', '.join(found)}; {shorten(unnamed)}: named as "
            "no split. Name the files that are to be read, as a glob."
        )
    if card.data_dir and not found:
        found = {"train": names}
    return {split: partial(list, files) for split, files in found.items()} or None


def _unsplit_files(folder: FolderView) -> list[str]:
    """The data files of a folder without caches; folders in it that list their files are read by their lists."""
    files = [name for name in folder.names if folder.is_data(name) and not is_cache(name)]
    for name in folder.names:
        parent, _, last = name.rpartition("/")
        if last in LISTS:
            listed = _listed_files(folder.below(parent) if parent else folder, last)
            if listed is not None:
                prefix = f"{parent}/" if parent else ""
                files = [file for file in files if not file.startswith(prefix)] + [prefix + file for file in listed]
    return sorted(files)


def is_cache(name: str) -> bool:
    """Whether a file is what `map`, `filter` and `shuffle` of `datasets` leave beside its rows."""
    return CACHE_FILE.fullmatch(name.rpartition("/")[2]) is not None


def _saved_files(folder: FolderView, split: str) -> list[str]:
    inner = folder.below(split)
    if STATE_NAME not in inner.names:
        raise ValueError(f"data.path: {inner.path}: no {STATE_NAME}, though {SPLITS_NAME} names it; copy it again.")
    return [f"{split}/{file}" for file in _listed_files(inner, STATE_NAME) or []]


def _listed_files(folder: FolderView, name: str) -> list[str] | None:
    """The files that a folder's list names; `None` where a file of that name is no list."""
    facts = folder.load(name)
    key, of_entry = LISTS[name]
    if not isinstance(facts, dict) or key not in facts:
        return None
    if facts.get("_indices_files") or facts.get("_indices_data_files"):
        raise ValueError(
            f"data.path: {folder.path}/{name}: its rows are chosen by an indices file of an old version of `datasets`, "
            "which would be ignored. Load it with that version and save it again after flatten_indices()."
        )
    files = [str(entry[of_entry]) for entry in facts[key]]
    missing = [file for file in files if file not in folder.names]
    if missing:
        raise ValueError(f"data.path: {folder.path}: {shorten(missing)} missing, but listed in {name}; copy it again.")
    return files


def _name_splits(names: list[str]) -> dict[str, list[str]]:
    """Files by the split that their folders or names say, as `datasets` finds them; one may be of two."""
    sharded: dict[str, list[str]] = {}
    for name in names:
        if match := SHARD_OF_SPLIT.fullmatch(name):
            sharded.setdefault(match[1], []).append(name)
    if len(sharded) > 1 or "train" in sharded:
        return sharded

    def named(parts_of: Callable[[str], list[str]]) -> dict[str, list[str]]:
        return {
            split: [name for name in names if any(words & set(SEPARATORS.split(part)) for part in parts_of(name))]
            for split, words in SPLIT_WORDS.items()
        }

    by_folder = named(lambda name: name.split("/")[:-1])
    return by_folder if any(by_folder.values()) else named(lambda name: name.split("/")[-1:])


def shorten(names: list[str]) -> str:
    """The first names of a list."""
    more = f", and {len(names) - LISTED_NAMES} more" if len(names) > LISTED_NAMES else ""
    return ", ".join(names[:LISTED_NAMES]) + more
