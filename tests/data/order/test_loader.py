"""The order of samples and their noise: equal for every number of ranks, micro-batch size and cut."""

import json
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from lift_ds.data.order.dealing import BatchRule
from lift_ds.data.order.lanes import Lanes, choose_held_out, chunks_per_window
from lift_ds.data.order.loader import StepLoader
from lift_ds.data.order.stream import PackStream, merge_states, part_of_state
from lift_ds.data.reader import RowReader
from lift_ds.data.settings import DataConfig
from lift_ds.data.sources import Group, Manifest, open_sources
from lift_ds.data.text.chat import ChatEncoder
from lift_ds.objectives import objective_settings
from lift_ds.training.draws import make_noise_rule
from lift_ds.training.readers import fitting_lanes, lanes_line

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


CACHE = {}


class CachedReader(RowReader):
    """Tokenises each row once for all loaders of the same data: only their order is tested here."""

    def read_batch(self, refs):
        missing = [ref for ref in refs if ref not in self.cache]
        found = super().read_batch(missing)
        if len(found) < len(missing):
            return found
        self.cache.update(zip(missing, found, strict=True))
        return [self.cache[ref] for ref in refs]


def make_loader(
    path,
    tokenizer,
    rank=0,
    world=1,
    micro_batch=4,
    first_step=0,
    state=None,
    max_length=64,
    skip=False,
    capacity=None,
    num_workers=0,
    links=None,
    objective=None,
    difficulties=None,
):
    manifest = Manifest(open_sources([path], 0, "train", 10))
    lanes = Lanes(manifest, set(range(5)), num_lanes=8, window_chunks=2, seed=3)
    kind = RowReader if num_workers else CachedReader  # workers cannot import this module
    reader = kind(manifest, ChatEncoder(tokenizer, 1, max_length), None, skip_long=skip)
    reader.cache = CACHE.setdefault((path, max_length), {})
    stream = PackStream(lanes, reader, capacity)
    if state is not None:
        stream.load_state(state)
    settings = objective or objective_settings()
    rule = make_noise_rule(settings, 3, GLOBAL_BATCH, 4 if settings.level_per == "block" else None)
    batch_rule = BatchRule(micro_batch, is_packed=capacity is not None)
    return StepLoader(
        stream,
        rule,
        GLOBAL_BATCH,
        batch_rule,
        rank,
        world,
        1,
        first_step,
        num_workers,
        links,
        difficulties=difficulties,
    )


class RankThreads:
    """Ranks that are threads of this process."""

    def __init__(self, world):
        self.told, self.barrier = [None] * world, Barrier(world, timeout=60)

    def gather(self, rank, mine):
        self.told[rank] = mine
        self.barrier.wait()
        everyones = list(self.told)
        self.barrier.wait()
        return everyones

    def links(self, rank):
        def send(parts, sizes, stopping):
            received = [parts[rank] for parts in self.gather(rank, parts)]
            assert [len(part) for part in received] == sizes
            return received

        def exchange(parts, stopping):
            return [parts[rank] for parts in self.gather(rank, parts)]

        def total(values, stopping):
            return sum(self.gather(rank, values))

        return SimpleNamespace(total=total, send=send, exchange=exchange)


def documents_of(steps):
    """Everything about the documents of a step, noise and tokens included; a row may come twice, in two epochs."""
    found = []
    for step in steps:
        for batch in step.micro_batches:
            for row, sample in enumerate(batch.sample_ids):
                if sample < 0:
                    continue
                length = int(batch.attention_mask[row].sum())
                scalars = [float(each[row]) for each in (batch.t, batch.rho, batch.component)]
                tensors = (batch.clean_ids, batch.response_mask, batch.mask_uniform, batch.tie_uniform)
                found.append([sample, *scalars, *(tensor[row, :length].tolist() for tensor in tensors)])
    return sorted(found)


def run_steps(loader, count):
    """Some steps of one rank, without the thread."""
    state, found = loader.state, []
    for step in range(loader.step, loader.step + count):
        found.append(loader.make_step(step, state))
        state = found[-1].state
    return found


def global_steps(path, tokenizer, world, micro_batch, count, first_step=0, state=None, capacity=None):
    """Steps as lists over ranks, and the state after the last."""
    threads = RankThreads(world)
    loaders = [
        make_loader(
            path, tokenizer, rank, world, micro_batch, first_step, state, capacity=capacity, links=threads.links(rank)
        )
        for rank in range(world)
    ]
    with ThreadPoolExecutor(world) as pool:
        steps = [list(step) for step in zip(*pool.map(lambda loader: run_steps(loader, count), loaders), strict=True)]
    parts = [part_of_state(step.state, rank, world) for rank, step in enumerate(steps[-1])]
    assert sum(len(part["lanes"]) for part in parts) == len(steps[-1][0].state["lanes"])  # each travels once
    return steps, json.loads(json.dumps(merge_states([steps[-1][-1].state, *parts])))


PACKED = pytest.mark.parametrize("capacity", [None, 80], ids=["one row a slot", "packed"])


@pytest.fixture(scope="module")
def expected(path, tokenizer):
    return {capacity: global_steps(path, tokenizer, 1, 4, 12, capacity=capacity) for capacity in (None, 80)}


@PACKED
@pytest.mark.parametrize(
    ("world", "micro_batch"), [(1, 12), (1, 5), (2, 6), (2, 1), (3, 4), (4, 2), (5, 2), (7, 1), (8, 3), (13, 1)]
)
def test_ranks_and_micro_batches_change_nothing(path, tokenizer, expected, world, micro_batch, capacity):
    found, state = global_steps(path, tokenizer, world, micro_batch, 12, capacity=capacity)
    assert state == expected[capacity][1]
    for one, other in zip(expected[capacity][0], found, strict=True):
        assert documents_of(one) == documents_of(other)
        assert len({len(step.micro_batches) for step in other}) == 1
        assert len(documents_of(other)) == GLOBAL_BATCH if capacity is None else len(documents_of(other)) > GLOBAL_BATCH


@PACKED
@pytest.mark.parametrize("world", [1, 2, 3, 4, 5, 7, 8])
@pytest.mark.parametrize("other_world", [1, 2, 3, 4, 5, 7, 8])
def test_stop_and_resume_change_nothing(path, tokenizer, expected, world, other_world, capacity):
    """Between any two numbers of ranks, at a different step for each pair, with another micro-batch size."""
    cut = 1 + (3 * world + other_world) % 10
    before, state = global_steps(path, tokenizer, world, 2, cut, capacity=capacity)
    after, last = global_steps(path, tokenizer, other_world, 3, 12 - cut, cut, state, capacity)
    assert last == expected[capacity][1]
    for one, other in zip(expected[capacity][0], before + after, strict=True):
        assert documents_of(one) == documents_of(other)


@PACKED
@pytest.mark.parametrize("num_workers", [0, 2])
def test_thread_and_workers_give_the_same_steps_and_commit_what_was_consumed(
    path, tokenizer, expected, capacity, num_workers
):
    loader = make_loader(path, tokenizer, capacity=capacity, num_workers=num_workers)
    try:
        for one, direct in zip(
            expected[capacity][0][:5], run_steps(make_loader(path, tokenizer, capacity=capacity), 5), strict=True
        ):
            batch = next(loader)
            assert documents_of([batch]) == documents_of(one)
            assert loader.state == direct.state  # although later steps are prepared already
    finally:
        loader.close()


def test_a_lane_of_packs_is_read_by_one_rank_only(path, tokenizer):
    """Where the number of ranks divides the lanes; elsewhere all ranks read all of them."""
    for world, follows_all in ((2, False), (4, False), (3, True)):
        loader = make_loader(path, tokenizer, 1, world, capacity=80)
        lanes = {lane for step in range(3) for _, lane, _ in loader.slot_plan.slots(step)}
        assert lanes == (set(range(8)) if follows_all else set(range(1, 8, world)))


def test_a_worker_that_dies_is_an_error(path, tokenizer):
    loader = make_loader(path, tokenizer, num_workers=1)
    try:
        next(loader)
        loader._workers.processes[0].kill()
        with pytest.raises(RuntimeError, match="data worker 0 ended with code -9"):
            for _ in range(100):
                next(loader)
    finally:
        loader.close()


def test_a_worker_without_lanes_is_not_started(path, tokenizer):
    loader = make_loader(path, tokenizer, rank=1, world=8, capacity=80, num_workers=3)  # one lane of its own
    try:
        next(loader)
        assert len(loader._workers.processes) == 1
    finally:
        loader.close()


def test_a_worker_that_cannot_start_is_an_error(path, tokenizer):
    """What it is sent names a module that only this process has."""
    loader = make_loader(path, tokenizer, num_workers=1)
    loader.stream.reader.__class__ = CachedReader
    CachedReader.__module__ = "nowhere"
    sys.modules["nowhere"] = sys.modules[__name__]
    try:
        with pytest.raises(ModuleNotFoundError, match="nowhere"):
            next(loader)
    finally:
        loader.close()
        CachedReader.__module__ = __name__
        del sys.modules["nowhere"]


@PACKED
def test_rows_that_are_all_left_out_are_an_error_not_an_endless_search(path, tokenizer, capacity):
    loader = make_loader(path, tokenizer, max_length=8, skip=True, capacity=capacity)
    with pytest.raises(ValueError, match="rows in a row were left out as too long or bad"):
        run_steps(loader, 20)


def test_an_unreadable_chunk_is_tried_once_and_raised_when_its_row_is_due(path, tokenizer):
    loader = make_loader(path, tokenizer)
    reads = []

    def fail(chunk_index):
        reads.append(chunk_index)
        raise ConnectionError("no answer")

    loader.stream.reader.cache = {}
    loader.stream.reader.chunk = fail
    with pytest.raises(ConnectionError, match="no answer"):
        loader.make_step(0, loader.state)
    assert len(reads) == 1


def test_windows_grow_with_small_chunks_and_shrink_with_large_ones():
    """64 lanes want 16 rows each: 1,024 chunks of a row; of chunks of 16,384 rows two are 32,768."""
    assert chunks_per_window(4, 1, 64) == 1024
    assert chunks_per_window(4, 256, 64) == 4
    assert chunks_per_window(4, 16_384, 64) == 2
    assert chunks_per_window(4, 1_000_000, 64) == 1


def test_small_data_has_fewer_lanes():
    assert fitting_lanes(64, 30_000, is_packed=False) == 64
    assert fitting_lanes(64, 500, is_packed=False) == 16
    assert fitting_lanes(64, 7473, is_packed=True) == 4
    assert fitting_lanes(64, 3, is_packed=True) == 1


@pytest.mark.parametrize(
    ("num_lanes", "num_rows", "world_size", "said"),
    [
        (4, 7473, 2, ""),
        (4, 7473, 6, "4 lanes, which is no multiple of the ranks: .*for a new run set data.lanes=6"),  # 7473 / 1024 = 7
        (64, 70_000, 6, "64 lanes, .* set data.lanes=60"),  # 68 lanes have rows, 64 are wanted: 10 for each rank
        (1, 1000, 8, "1 lane, .* 8 lanes need 8,192 rows, and there are 1,000: take more rows, data.packing=none"),
    ],
)
def test_lanes_that_the_ranks_do_not_divide(num_lanes, num_rows, world_size, said):
    """Said where rows are packed, and what is named then suits the rows."""
    assert re.search(said, lanes_line(DataConfig(packing="best_fit"), num_lanes, num_rows, world_size))
    assert bool(said) == bool(lanes_line(DataConfig(packing="best_fit"), num_lanes, num_rows, world_size))
    assert lanes_line(DataConfig(), num_lanes, num_rows, world_size) == ""
    if "set data.lanes=" in said:
        named = int(said.rpartition("=")[2])
        assert fitting_lanes(named, num_rows, is_packed=True) == named
        assert named % world_size == 0


def test_a_position_of_other_settings_is_refused(path, tokenizer):
    """What decides tokens and order: each is named."""
    state = json.loads(json.dumps(make_loader(path, tokenizer).stream.state()))
    for change, message in (
        ({"max_length": 60}, "data.max_length was 64 and is 60"),
        ({"capacity": 80}, "pack_length"),
    ):
        with pytest.raises(ValueError, match=message):
            make_loader(path, tokenizer, state=state, **change)


def test_what_goes_wrong_in_a_worker_is_raised_by_the_rank(path, tokenizer):
    loader = make_loader(path, tokenizer, max_length=24, num_workers=2)
    try:
        with pytest.raises(ValueError, match="more than data.max_length=24"):
            next(loader)
    finally:
        loader.close()


class Rows:
    """A manifest of chunks of 16 rows."""

    digest = "rows"

    def __init__(self, num_rows):
        self.num_rows = num_rows
        self.first_ids = [*range(0, num_rows, 16), num_rows]
        self.chunks = self.first_ids[:-1]
        self.groups = [Group("rows", None, 0, len(self.chunks), num_rows)]


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 400), st.integers(1, 40), st.integers(1, 5))
def test_every_epoch_has_every_row_once(num_rows, num_lanes, window_chunks):
    lanes = Lanes(Rows(num_rows), set(), num_lanes, window_chunks, seed=1)
    (order,) = lanes.orders
    for epoch in (0, 1):
        windows = range(epoch * order.num_windows, (epoch + 1) * order.num_windows)
        parts = [order.part_rows(lane, window) for lane in range(num_lanes) for window in windows]
        assert sorted(row for part in parts for row in part.tolist()) == list(range(num_rows))


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
    seen = [sample for step in run_steps(loader, 7) for batch in step.micro_batches for sample in batch.sample_ids]
    assert len(seen) == 84
    assert len(set(seen)) >= 80
    assert not set(seen) & set(range(5))  # held out


def test_stratified_levels_cover_a_step(path, tokenizer):
    step = run_steps(make_loader(path, tokenizer), 1)[0]
    levels = torch.cat([batch.t for batch in step.micro_batches]).sort().values
    assert torch.diff(levels).max() < 1.5 / GLOBAL_BATCH


def test_a_changed_file_is_noticed(path, tokenizer, tmp_path):
    state = make_loader(path, tokenizer).stream.state()
    other = tmp_path / "rows.jsonl"
    other.write_text('{"prompt": "q", "response": "r"}\n' * 50)
    with pytest.raises(ValueError, match="rows.jsonl has changed"):
        make_loader(str(other), tokenizer, state=state)


def test_long_rows_are_skipped_and_counted(path, tokenizer):
    step = run_steps(make_loader(path, tokenizer, max_length=24, skip=True), 1)[0]
    kept = sum(number >= 0 for batch in step.micro_batches for number in batch.sample_ids)
    assert 0 < step.num_skipped < GLOBAL_BATCH
    assert kept + step.num_skipped == GLOBAL_BATCH
    with pytest.raises(ValueError, match="more than data.max_length=24"):
        run_steps(make_loader(path, tokenizer, max_length=24), 1)


def test_a_rank_without_documents_gets_a_stand_in(path, tokenizer):
    (steps,), _ = global_steps(path, tokenizer, world=13, micro_batch=1, count=1)
    (batches,) = (batches for (batches,) in [[step.micro_batches] for step in steps] if batches[0].sample_ids[0] < 0)
    assert [batch.sample_ids for batch in batches] == [[-1]]
    assert not batches[0].response_mask.any()


def test_held_out_rows(path):
    manifest = Manifest(open_sources([path], 0, "train", 10))
    chosen = choose_held_out(manifest, 20, 1)
    assert len(chosen) == 20
    assert chosen == choose_held_out(manifest, 20, 1) != choose_held_out(manifest, 20, 2)
    with pytest.raises(ValueError, match="eval.rows=90: the data has 90 rows"):
        choose_held_out(manifest, 90, 1)
