"""What is said, before training, of the memory that remembering rows takes."""

import numpy as np
import pytest

from lift_ds.method.memory import BLOCK_ROWS, RowMemory
from lift_ds.planning.row_memory import MIB, free_host_bytes, row_memory_bytes, row_memory_line


@pytest.mark.parametrize("size", [12, 200])
def test_the_estimate_is_what_is_taken(size):
    memory = RowMemory()
    for row in range(4 * BLOCK_ROWS):
        memory.write([(row, size, 0, np.array([0]), np.zeros(1, np.float32))])
    assert memory.num_bytes <= row_memory_bytes(4 * BLOCK_ROWS, size, 1.0) <= 1.35 * memory.num_bytes


def test_too_little_memory_is_an_error_with_the_numbers():
    with pytest.raises(ValueError, match=r"1,000,000 rows of about 400 response tokens take 481 MiB .* 300 MiB left"):
        row_memory_line(1_000_000, 400.0, 0.5, 9_000_000, 300.0 * MIB)
    line = row_memory_line(1_000_000, 400.0, 0.5, 9_000_000, 600.0 * MIB)
    assert line.endswith("\n") and "about 480.7 MiB" in line and "no row comes twice" not in line


def test_rows_that_come_once_are_said():
    """Nothing is remembered of a row when it comes for the first time."""
    assert "no row comes twice" in row_memory_line(1000, 20.0, 1.0, 1000, 1e9)


def test_free_memory(tmp_path):
    assert 1e8 < free_host_bytes() < 1e14
    (tmp_path / "meminfo").write_text("MemTotal:  9 kB\nMemAvailable:    2048 kB\n")
    assert free_host_bytes(tmp_path / "meminfo") == 2 * MIB
    assert free_host_bytes(tmp_path / "none") > 1e8
