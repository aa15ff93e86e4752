"""Readers of a run's rows, opened once for all ranks, and how many lanes suit them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lift_ds.data.reader import RowReader
from lift_ds.data.settings import ColumnsConfig, DataConfig
from lift_ds.data.sources import FoundSource, Manifest, SourceGroup, check_same_files
from lift_ds.data.text.chat import ChatEncoder
from lift_ds.data.text.turns import RowRules
from lift_ds.ranks.once import Once

LANE_ROWS, PACKED_LANE_ROWS = 16, 1024


def open_reader(
    data: DataConfig,
    encoder: ChatEncoder,
    groups: list[SourceGroup],
    cache_dir: Path | None = None,
    found: list[FoundSource] | None = None,
) -> RowReader:
    """The rows of some sources.

    Args:
        data: How they are read.
        encoder: Conversations to tokens.
        groups: The sources.
        cache_dir: Where indexes may be kept.
        found: What another rank has found in them, which is not looked for again.

    Raises:
        ValueError: A file is malformed, or its first row does not fit the columns.
        ConnectionError: A server did not answer.
    """
    return RowReader(
        Manifest(groups, cache_dir, found),
        encoder,
        data.columns if data.columns.named() else None,
        RowRules(data.system, data.reasoning, frozenset(data.ignore)),
        skip_long=data.on_long == "skip",
        skip_bad=data.on_bad_row == "skip",
    )


def open_reader_once(
    data: DataConfig, encoder: ChatEncoder, groups: list[SourceGroup], cache_dir: Path, once: Once, what: str
) -> RowReader:
    """As `open_reader`, but rank 0 alone indexes the files and looks for their columns.

    Raises:
        ValueError: As of `open_reader`, or a machine has other files than rank 0's; on every rank.
    """
    opened: list[RowReader] = []

    def find() -> tuple[list[FoundSource], list[ColumnsConfig]]:
        opened.append(open_reader(data, encoder, groups, cache_dir))
        return opened[0].manifest.found, opened[0].columns

    found, columns = once.per_run(f"indexing the {what} rows", find)
    once.per_node(f"comparing the {what} files", lambda: None if opened else check_same_files(groups, found))
    if opened:
        return opened[0]
    known = [replace(group, columns=mapping) for group, mapping in zip(groups, columns, strict=True)]
    return open_reader(data, encoder, known, cache_dir, found)


def pack_capacity(data: DataConfig, max_length: int) -> int:
    """Most tokens of a pack.

    Raises:
        ValueError: A document, of `max_length`, may be longer than a pack.
    """
    capacity = data.pack_length or max_length
    if capacity < max_length:
        raise ValueError(
            f"data.pack_length={capacity} is less than data.max_length={max_length}: rows between would fit no "
            "pack; lower data.max_length or raise data.pack_length."
        )
    return capacity


def fitting_lanes(wanted: int, num_rows: int, is_packed: bool) -> int:
    """The wanted lanes, halved until the rows suffice: each needs some of its own, more where packs hold them back."""
    rows_per_lane = PACKED_LANE_ROWS if is_packed else LANE_ROWS
    while wanted > 1 and num_rows < wanted * rows_per_lane:
        wanted //= 2
    return wanted


def lanes_line(data: DataConfig, num_lanes: int, num_rows: int, world_size: int) -> str:
    """What is said where packing has every rank tokenise all rows, and how to avoid it; empty where it does not."""
    if data.packing == "none" or num_lanes % world_size == 0:
        return ""
    most = num_rows // PACKED_LANE_ROWS // world_size * world_size
    remedy = (
        f"for a new run set data.lanes={min(most, max(world_size, data.lanes // world_size * world_size))}"
        if most
        else f"{world_size} lanes need {world_size * PACKED_LANE_ROWS:,} rows, and there are {num_rows:,}: take more "
        "rows, data.packing=none, or as many ranks as divide the lanes"
    )
    return (
        f"data.packing={data.packing} on {world_size} ranks with {num_lanes} lane{'s' * (num_lanes > 1)}, which is no "
        f"multiple of the ranks: every rank reads and tokenises all rows; {remedy}\n"
    )
