"""What the difficulty memory of rows takes on a host, said before training."""

from __future__ import annotations

import os
from pathlib import Path

BYTES_A_TOKEN, BYTES_A_ROW = 2.0, 8.0
GROWTH = 1.25  # a block grows by a quarter
MIB = 2**20


def row_memory_bytes(num_rows: int, tokens_a_row: float, share: float) -> float:
    """Of rows with so many response tokens on average, when all were seen, on a host with this share of the ranks."""
    return num_rows * (GROWTH * BYTES_A_TOKEN * tokens_a_row + BYTES_A_ROW) * share


def free_host_bytes(meminfo: Path = Path("/proc/meminfo"), group: Path = Path("/sys/fs/cgroup")) -> float:
    """What this host, or the container, can still give; all that the host has where the system does not say.

    Args:
        meminfo: Where the system says it.
        group: Folder of the control group (version 2) that limits a container.
    """
    free = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    if meminfo.is_file():
        fields = dict(line.split(":") for line in meminfo.read_text().splitlines())
        free = 1024.0 * int(fields["MemAvailable"].split()[0])
    limit = (group / "memory.max").read_text().strip() if (group / "memory.max").is_file() else "max"
    if limit == "max":
        return free
    cached = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())["inactive_file"]
    return min(free, float(int(limit) - int((group / "memory.current").read_text()) + int(cached)))


def row_memory_line(num_rows: int, tokens_a_row: float, share: float, num_drawn: int, free_bytes: float) -> str:
    """What is said of a run that draws so many documents in all, with a line break at the end.

    Raises:
        ValueError: The host has too little memory.
    """
    num_seen = min(num_rows, num_drawn)
    needed = row_memory_bytes(num_seen, tokens_a_row, share)
    if needed > free_bytes:
        raise ValueError(
            f"objective.scoring=memory: {num_seen:,} rows of about {tokens_a_row:.0f} response tokens take "
            f"{needed / MIB:,.0f} MiB on this host, which has {free_bytes / MIB:,.0f} MiB left. Take more hosts, fewer "
            "rows, or objective.scoring=buffer, which remembers tokens and not rows."
        )
    line = f"difficulty memory: about {needed / MIB:,.1f} MiB on this host when all rows were seen\n"
    if num_drawn <= num_rows:
        line += (
            f"difficulty memory: {num_drawn:,} documents of {num_rows:,} rows are drawn, so that no row comes twice: "
            "what is expected of its tokens is the table's word alone\n"
        )
    return line
