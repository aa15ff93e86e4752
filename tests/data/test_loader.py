"""The order of samples and their noise: equal for every number of ranks, micro-batch size and cut."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from lift_ds.config import ObjectiveConfig
from lift_ds.data.chat import ChatEncoder
from lift_ds.data.lanes import Lanes, choose_held_out
from lift_ds.data.loader import StepLoader, micro_batches_per_step
from lift_ds.data.reader import RowReader
from lift_ds.data.sources import Manifest, open_sources
from lift_ds.training.draws import make_noise_rule

GLOBAL_BATCH = 12


@pytest.fixture(scope="module")
def tokenizer(tiny_dir):
    return AutoTokenizer.from_pretrained(tiny_dir)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    rows = [{"prompt": f"q {n}", "response": "word " * (1 + n % 7)} for n in range(90)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def make_loader(path, tokenizer, rank=0, world=1, micro_batch=4, first_step=0, state=None, max_length=64, skip=False):
    manifest = Manifest(open_sources([path], 0, "train", 10))
    lanes = Lanes(manifest, set(range(5)), num_lanes=8, window_chunks=2, seed=3)
    if state is not None:
        lanes.load_state(state)
    reader = RowReader(manifest, ChatEncoder(tokenizer, 1, max_length), None, skip_long=skip)
    rule = make_noise_rule(ObjectiveConfig(), 3, GLOBAL_BATCH)
    return StepLoader(lanes, reader, rule, GLOBAL_BATCH, micro_batch, rank, world, 1, first_step)


def documents_of(steps):
    """Everything about each document of a step, by sample id: noise and tokens included."""
    found = {}
    for step in steps:
        for batch in step.micro_batches:
            for row, sample in enumerate(batch.sample_ids.tolist()):
                if sample < 0:
                    continue
                length = int(batch.attention_mask[row].sum())
                scalars = [float(each[row]) for each in (batch.t, batch.rho, batch.component)]
                tensors = (batch.clean_ids, batch.response_mask, batch.mask_uniform, batch.tie_uniform)
                key = (sample, len([other for other in found if other[0] == sample]))
                found[key] = scalars + [tensor[row, :length].tolist() for tensor in tensors]
    return found


def global_steps(path, tokenizer, world, micro_batch, count, first_step=0, state=None):
    """Steps as lists over ranks, and the state after the last."""
    loaders = [make_loader(path, tokenizer, rank, world, micro_batch, first_step, state) for rank in range(world)]
    steps = [[loader.make_step(step) for loader in loaders] for step in range(first_step, first_step + count)]
    states = [step.state for step in steps[-1]]
    assert all(state == states[0] for state in states)
    return steps, states[0]


@pytest.mark.parametrize(
    ("world", "micro_batch"), [(1, 12), (1, 5), (2, 6), (2, 1), (3, 4), (4, 2), (5, 2), (7, 1), (13, 1)]
)
def test_ranks_and_micro_batches_change_nothing(path, tokenizer, world, micro_batch):
    expected, _ = global_steps(path, tokenizer, 1, 4, 10)
    found, _ = global_steps(path, tokenizer, world, micro_batch, 10)
    for one, other in zip(expected, found, strict=True):
        assert documents_of(one) == documents_of(other)
        assert len({len(step.micro_batches) for step in other}) == 1
        assert len(documents_of(other)) == GLOBAL_BATCH


@pytest.mark.parametrize(("cut", "world", "other_world"), [(1, 2, 2), (4, 2, 3), (9, 3, 1)])
def test_stop_and_resume_change_nothing(path, tokenizer, cut, world, other_world):
    expected, _ = global_steps(path, tokenizer, 1, 4, 12)
    before, state = global_steps(path, tokenizer, world, 2, cut)
    state = json.loads(json.dumps(state))
    after, _ = global_steps(path, tokenizer, other_world, 3, 12 - cut, first_step=cut, state=state)
    for one, other in zip(expected, before + after, strict=True):
        assert documents_of(one) == documents_of(other)


def test_the_thread_gives_the_same_steps_and_commits_what_was_consumed(path, tokenizer):
    loader = make_loader(path, tokenizer)
    direct = make_loader(path, tokenizer)
    for step in range(5):
        batch, expected = next(loader), direct.make_step(step)
        assert documents_of([batch]) == documents_of([expected])
        assert loader.state == expected.state  # although later steps are prepared already
    loader.close()


class Rows:
    """A manifest of chunks of 16 rows."""

    digest = "rows"

    def __init__(self, num_rows):
        self.num_rows = num_rows
        self.first_ids = [*range(0, num_rows, 16), num_rows]
        self.chunks = self.first_ids[:-1]


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 400), st.integers(1, 40), st.integers(1, 5))
def test_every_epoch_has_every_row_once(num_rows, num_lanes, window_chunks):
    lanes = Lanes(Rows(num_rows), set(), num_lanes, window_chunks, seed=1)
    parts_per_epoch = lanes.num_windows * lanes.parts_per_window
    for epoch in (0, 1):
        parts = range(epoch * parts_per_epoch, (epoch + 1) * parts_per_epoch)
        assert sorted(row for part in parts for row in lanes.part_rows(part).tolist()) == list(range(num_rows))


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 400), st.integers(1, 40), st.integers(1, 5))
def test_no_lane_starves(num_rows, num_lanes, window_chunks):
    """Also with fewer rows than lanes: after ten passes every row was seen about ten times."""
    lanes = Lanes(Rows(num_rows), set(), num_lanes, window_chunks, seed=1)
    seen = [lanes.next(draw % num_lanes).sample_id for draw in range(10 * num_rows)]
    counts = [seen.count(row) for row in range(num_rows)]
    assert min(counts) >= 5
    assert max(counts) <= 15


def test_small_data_is_spread_over_all_lanes(path, tokenizer):
    """85 rows, 8 lanes: after 84 samples nearly every row was seen, and none twice in a lane's epoch."""
    loader = make_loader(path, tokenizer)
    seen = [
        sample
        for step in range(7)
        for batch in loader.make_step(step).micro_batches
        for sample in batch.sample_ids.tolist()
    ]
    assert len(seen) == 84
    assert len(set(seen)) >= 80
    assert not set(seen) & set(range(5))  # held out


def test_stratified_levels_cover_a_step(path, tokenizer):
    step = make_loader(path, tokenizer).make_step(0)
    levels = torch.cat([batch.t for batch in step.micro_batches]).sort().values
    assert torch.diff(levels).max() < 1.5 / GLOBAL_BATCH


def test_a_changed_file_is_noticed(path, tokenizer, tmp_path):
    state = make_loader(path, tokenizer).lanes.state()
    other = tmp_path / "rows.jsonl"
    other.write_text('{"prompt": "q", "response": "r"}\n' * 50)
    with pytest.raises(ValueError, match="manifest"):
        make_loader(str(other), tokenizer, state=state)


def test_long_rows_are_skipped_and_counted(path, tokenizer):
    step = make_loader(path, tokenizer, max_length=24, skip=True).make_step(0)
    kept = sum(int((batch.sample_ids >= 0).sum()) for batch in step.micro_batches)
    assert 0 < step.num_skipped < GLOBAL_BATCH
    assert kept + step.num_skipped == GLOBAL_BATCH
    with pytest.raises(ValueError, match="more than data.max_length=24"):
        make_loader(path, tokenizer, max_length=24).make_step(0)


def test_a_rank_without_documents_gets_a_stand_in(path, tokenizer):
    step = make_loader(path, tokenizer, rank=12, world=13, micro_batch=1).make_step(0)
    assert [batch.sample_ids.tolist() for batch in step.micro_batches] == [[-1]]
    assert not step.micro_batches[0].response_mask.any()


def test_accumulation_follows_from_the_global_batch():
    assert [micro_batches_per_step(96, 4, world) for world in (1, 2, 5)] == [24, 12, 5]


def test_held_out_rows(path):
    manifest = Manifest(open_sources([path], 0, "train", 10))
    chosen = choose_held_out(manifest, 20, 1)
    assert len(chosen) == 20
    assert chosen == choose_held_out(manifest, 20, 1) != choose_held_out(manifest, 20, 2)
    with pytest.raises(ValueError, match="eval.rows=90: the data has 90 rows"):
        choose_held_out(manifest, 90, 1)
