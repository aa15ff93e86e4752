"""What is remembered of each token: records, blocks, and what comes of many observations."""

import numpy as np
import pytest

from lift_ds.method import memory
from lift_ds.method.memory import BLOCK_ROWS, LARGEST, MOST_COUNTED, Records, RowMemory


def test_records_survive_packing():
    """Two bytes: counts and bins exact; residuals within 1/127 of their root's range, and never beyond the largest."""
    residuals = np.array([0, 0.001, -0.001, 0.3, -2.5, 7.0, 15.9, -40.0], np.float32)
    counts, bins = np.array([0, 1, 2, 3, 14, 15, 16, 99]), np.array([0, 15, 1, 2, 3, 4, 5, 6])
    packed = Records(residuals, counts, bins).packed()
    assert packed.dtype == np.uint16
    found = Records.unpacked(packed)
    assert found.counts.tolist() == [0, 1, 2, 3, 14, 15, 15, 15] and found.bins.tolist() == bins.tolist()
    roots = np.sign(residuals) * np.sqrt(np.minimum(np.abs(residuals), LARGEST))
    assert (
        np.abs(np.sign(found.residuals) * np.sqrt(np.abs(found.residuals)) - roots).max() <= LARGEST**0.5 / 254 + 1e-6
    )
    assert np.array_equal(Records.unpacked(found.packed()).residuals, found.residuals)


def test_every_record_is_what_it_unpacks_to():
    every = np.arange(2**16, dtype=np.uint16)
    every = every[every >> 8 != 128]  # -128, which no residual has
    assert np.array_equal(Records.unpacked(every).packed(), every)


def test_observations_decay():
    """The first is taken whole, the second makes the mean, later ones move by half."""
    row = RowMemory()
    for number, (value, expected) in enumerate(((2.0, 2.0), (4.0, 3.0), (1.0, 2.0), (6.0, 4.0)), 1):
        row.write([(5, 3, 7, np.array([1]), np.array([value], np.float32))])
        found = Records.unpacked(row.read(5, 3))
        assert found.residuals[1] == pytest.approx(expected, abs=0.1)
        assert found.counts.tolist() == [0, number, 0] and found.bins.tolist() == [0, 7, 0]
        assert found.trusted[1] == pytest.approx(found.residuals[1] * number / (number + memory.PRIOR_COUNT))
    for _ in range(20):
        row.write([(5, 3, 15, np.array([1]), np.array([1.0], np.float32))])
    assert Records.unpacked(row.read(5, 3)).counts[1] == MOST_COUNTED
    assert not row.read(6, 3).any() and not row.read(5 + BLOCK_ROWS, 2).any()


def test_blocks_go_through_a_checkpoint_and_to_their_owners():
    """Whatever came first; each rank takes its blocks alone."""
    chance = np.random.default_rng(0)
    one, sizes = RowMemory(), {}
    for row in chance.permutation(3 * BLOCK_ROWS)[:500].tolist():
        sizes[row] = int(chance.integers(1, 9))
        places = chance.permutation(sizes[row])[: chance.integers(1, sizes[row] + 1)]
        one.write([(row, sizes[row], 3, places, chance.normal(size=len(places)).astype(np.float32))])
    assert one.num_tokens == sum(sizes.values())
    for world_size in (1, 2, 5):
        ranks = [RowMemory(rank, world_size) for rank in range(world_size)]
        for number, row_sizes, records in one.state():
            assert len(records) == row_sizes.sum()
            ranks[number % world_size].load_block(number, row_sizes, records)
        for row, size in sizes.items():
            assert np.array_equal(
                ranks[one.owner(row) if world_size == 1 else row // BLOCK_ROWS % world_size].read(row, size),
                one.read(row, size),
            )
            assert ranks[0].owner(row) == row // BLOCK_ROWS % world_size


def test_bytes_of_a_token():
    """Answers of 16 tokens take less than four bytes a token, longer ones about two."""
    for size, most in ((16, 4.0), (400, 2.6)):
        rows = RowMemory()
        for row in range(4 * BLOCK_ROWS):
            rows.write([(row, size, 0, np.array([0]), np.zeros(1, np.float32))])
        assert rows.num_bytes / rows.num_tokens < most


def test_rows_that_changed_are_refused():
    rows = RowMemory()
    rows.write([(7, 4, 0, np.array([0]), np.zeros(1, np.float32))])
    for action in (lambda: rows.read(7, 5), lambda: rows.write([(7, 3, 0, np.array([0]), np.zeros(1, np.float32))])):
        with pytest.raises(ValueError, match="row 7 had 4 response tokens"):
            action()
    sizes = np.zeros(BLOCK_ROWS, np.int32)
    sizes[3] = 4
    with pytest.raises(ValueError, match="block 2 .* 3 records of 4"):
        rows.load_block(2, sizes, np.zeros(3, np.uint16))


def test_all_at_once_is_one_by_one():
    """Rows that come twice, blocks that grow meanwhile."""
    chance = np.random.default_rng(1)
    rows = chance.integers(0, 3 * BLOCK_ROWS, size=40).tolist() * 2
    sizes = {row: int(chance.integers(1, 30)) for row in rows}
    together, apart = RowMemory(), RowMemory()
    for _ in range(3):
        shown = []
        for row in rows:
            places = chance.permutation(sizes[row])[: chance.integers(0, sizes[row] + 1)]
            shown.append((row, sizes[row], row % 16, places, chance.normal(size=len(places)).astype(np.float32)))
        together.write(shown)
        for one in shown:
            apart.write([one])
    for row, size in sizes.items():
        assert np.array_equal(together.read(row, size), apart.read(row, size))
    together.write([])
