"""The difficulty memory's part of a checkpoint: a file a rank, by block, so that any number of ranks reads its own.

block.N.sizes, block.N.records      see `RowMemory.state`
pending.S.C                         what step S showed on the rank: the bytes of column C of `Shown`
numbers                             the last step that is in the blocks, and those that are pending
num_documents                       of all steps until the last one
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import safe_open

from lift_ds.method.memory import BLOCK_ROWS, RowMemory
from lift_ds.storage.manifest import MEMORY_FOLDER


def read_rows(checkpoint: Path) -> RowMemory:
    """All rows of a checkpoint's memory on one rank, without what is pending.

    Raises:
        ValueError: It has not all.
    """
    rows = RowMemory()
    for path in memory_files(checkpoint):
        with safe_open(path, framework="np") as opened:
            load_blocks(opened, rows)
    return rows


def load_blocks(opened: Any, rows: RowMemory) -> None:
    """Of an open file, the blocks that are this rank's.

    Raises:
        ValueError: One is not whole.
    """
    for number in block_numbers(opened.keys()):
        if rows.owner(number * BLOCK_ROWS) == rows.rank:
            rows.load_block(number, *(opened.get_tensor(f"block.{number}.{name}") for name in ("sizes", "records")))


def memory_files(checkpoint: Path) -> list[Path]:
    """The parts of a checkpoint's memory, by rank; none where it was written with another `objective.scoring`.

    Raises:
        ValueError: It has not all.
    """
    files = sorted((checkpoint / MEMORY_FOLDER).glob("rank-*-of-*.safetensors"))
    if files and len(files) != (wanted := int(files[0].stem.rpartition("-")[2])):
        raise ValueError(f"{files[0].parent}: {len(files)} files of {wanted}; a rank's part is missing.")
    return files


def places_read(rank: int, world_size: int, num_files: int) -> range:
    """Which of the files have what a rank reads; at least one.

    File p has the blocks n = p mod `num_files`, the rank owns n = rank mod `world_size`: both only where p and rank are
    the same modulo the greatest common divisor. As many ranks as files read one each.
    """
    shared = math.gcd(world_size, num_files)
    return range(rank % shared, num_files, shared)


def block_numbers(names: Iterable[str]) -> list[int]:
    """Of the names in a part."""
    return sorted(int(name.split(".")[1]) for name in names if name.endswith(".sizes"))
