import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lift_ds.method.difficulty import NUM_BINS, DifficultyTable, Observations, level_bin

VOCABULARY = 37


def draw(seed, step, size):
    generator = torch.Generator().manual_seed(1000 * seed + step)
    tokens = torch.randint(VOCABULARY, (size,), generator=generator)
    levels = torch.rand(size, generator=generator).clamp(min=1e-3)
    return tokens, levels, 5 * torch.rand(size, generator=generator)


def sync(tables, step):
    sent = [table.outgoing(step) for table in tables]
    groups = [table.absorb([parts[table.rank] for parts in sent], step) for table in tables]
    for table in tables:
        table.set_groups(sum(groups))


def make(world_size, decay=0.9):
    return [DifficultyTable(VOCABULARY, rank, world_size, decay) for rank in range(world_size)]


def run(world_size, num_steps, sync_every, num_micro_batches, size=60):
    """The table after some steps whose observations are dealt to ranks and micro-batches."""
    tables = make(world_size)
    for step in range(1, num_steps + 1):
        observed = draw(0, step, size)
        for place in range(world_size * num_micro_batches):
            part = [each[place :: world_size * num_micro_batches] for each in observed]
            tables[place % world_size].observe([Observations.of(*part)], step)
        if step % sync_every == 0:
            sync(tables, step)
    sync(tables, num_steps)
    return tables


def whole(tables):
    return torch.cat([table.sums for table in tables]), torch.cat([table.counts for table in tables])


def test_bins():
    assert level_bin(torch.tensor([1e-3, 1 / 16, 0.0626, 0.5, 0.9999, 1.0])).tolist() == [0, 0, 1, 7, 15, 15]


def test_arithmetic_of_one_pair():
    """Two observations, at steps 1 and 3, decay 0.5, seen from step 4: (2 x 1/8 + 1 x 1/2) and (1/8 + 1/2)."""
    table = DifficultyTable(4, decay=0.5)
    token, level = torch.tensor([2]), torch.tensor([1.0])
    table.observe([Observations.of(token, level, torch.tensor([2.0]))], 1)
    table.observe([Observations.of(token, level, torch.tensor([1.0]))], 3)
    sync([table], 4)
    assert table.sums[2, 15].item() == pytest.approx(0.75)
    assert table.counts[2, 15].item() == pytest.approx(0.625)
    assert table.sums.count_nonzero() == 1


@settings(max_examples=25, deadline=None)
@given(
    world_size=st.sampled_from([1, 2, 3, 5]),
    sync_every=st.sampled_from([1, 2, 5, 100]),
    num_micro_batches=st.sampled_from([1, 2, 7]),
)
def test_the_cut_does_not_change_the_table(world_size, sync_every, num_micro_batches):
    """Ranks, micro-batches and sync intervals: the same table to 1e-6."""
    expected = whole(run(1, 11, 1, 1))
    for ours, reference in zip(whole(run(world_size, 11, sync_every, num_micro_batches)), expected, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-6, atol=1e-6)


def test_a_rank_without_tokens_takes_part():
    tables = make(2)
    tables[0].observe([Observations.of(*draw(0, 1, 50))], 1)
    tables[1].observe([Observations.of(*(each[:0] for each in draw(0, 1, 1)))], 1)
    sync(tables, 1)
    assert whole(tables)[1].sum().item() == pytest.approx(50)


def test_more_ranks_than_tokens():
    tables = [DifficultyTable(3, rank, 5) for rank in range(5)]
    tables[4].observe([Observations.of(torch.tensor([0, 2]), torch.tensor([0.5, 0.5]), torch.tensor([1.0, 2.0]))], 1)
    sync(tables, 1)
    assert whole(tables)[0].sum().item() == pytest.approx(3.0)


def test_resharding_loses_nothing():
    """2 -> 1 -> 4 -> 4 -> 40 ranks in mid-interval, against a run that never changed; 40 are more than tokens."""

    def continue_with(tables, world_size):
        states = [table.state() for table in tables]
        resharded = make(world_size)
        for table in resharded:
            read = table.places_read(len(states))
            assert len(states) != world_size or len(read) <= 2  # its own and the first
            table.load_states({place: states[place] for place in read})
        return resharded

    tables, alone = make(2), make(1)
    for step in range(1, 13):
        observed = draw(0, step, 60)
        alone[0].observe([Observations.of(*observed)], step)
        for table in tables:
            table.observe([Observations.of(*(each[table.rank :: len(tables)] for each in observed))], step)
        if step % 5 == 0:
            sync(tables, step)
            sync(alone, step)
        if step in (3, 7, 8, 11):
            tables = continue_with(tables, {3: 1, 7: 4, 8: 4, 11: 40}[step])
    sync(tables, 12)
    sync(alone, 12)
    for ours, reference in zip(whole(tables), whole(alone), strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-6, atol=1e-6)
    keys = torch.arange(VOCABULARY * NUM_BINS)
    found = torch.cat([table.look_up(keys[table.first * NUM_BINS :][: table.sums.numel()]) for table in tables])
    torch.testing.assert_close(found, alone[0].look_up(keys), rtol=1e-5, atol=1e-5)


def test_another_vocabulary_is_refused():
    table = DifficultyTable(VOCABULARY)
    with pytest.raises(ValueError, match="a vocabulary of 5 tokens; the model has 37"):
        table.load_states({0: DifficultyTable(5).state()})
    with pytest.raises(ValueError, match="a rank's file is missing"):
        table.load_states({0: make(2)[0].state()})


def test_look_up_converges_to_what_is_observed():
    table = DifficultyTable(VOCABULARY, decay=1.0)
    token, level = torch.tensor([3]), torch.tensor([0.3])
    for step in range(1, 400):
        table.observe([Observations.of(token, level, torch.tensor([1.5]))], step)
        table.observe([Observations.of(*draw(1, step, 5))], step)
    sync([table], 399)
    assert table.look_up(token * NUM_BINS + level_bin(level)).item() == pytest.approx(1.5, abs=0.05)


def test_an_unseen_pair_has_the_difficulty_of_pairs_like_it():
    """Tokens 0 to 9 are common and easy, 10 to 19 rare and hard; 20 to 36 were never seen."""
    table = DifficultyTable(VOCABULARY, decay=1.0)
    common, rare = torch.arange(10).repeat(64), torch.arange(10, 20)
    level = torch.full((640,), 0.5)
    table.observe([Observations.of(common[common != 4], level[common != 4], torch.full((576,), 0.2))], 1)
    table.observe([Observations.of(rare, level[:10], torch.full((10,), 4.0))], 1)
    # token 4 is as common as the others, but never seen at level 0.5
    table.observe([Observations.of(torch.full((64,), 4), torch.full((64,), 0.9), torch.full((64,), 0.3))], 1)
    sync([table], 1)
    at_half = table.look_up(torch.arange(VOCABULARY) * NUM_BINS + level_bin(torch.tensor(0.5)))
    assert at_half[4].item() == pytest.approx(0.2, abs=0.1)
    assert at_half[10].item() > 3
    assert 0.2 < at_half[30].item() < 3  # nothing is known: the bin's mean


@pytest.mark.parametrize("decay", [0.0, -1.0, 1.1])
def test_decay_out_of_range(decay):
    with pytest.raises(ValueError, match="0 < decay <= 1"):
        DifficultyTable(4, decay=decay)


def test_memory_is_cut_by_the_ranks():
    one, four = DifficultyTable(126_464), DifficultyTable(126_464, 3, 4)
    assert one.num_bytes == 126_464 * 16 * 8
    assert four.num_bytes == one.num_bytes / 4
