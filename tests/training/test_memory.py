"""The difficulty memory over ranks: what it knows hangs on the steps alone."""

import threading
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from itertools import chain

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from lift_ds.data.order.stream import merge_states
from lift_ds.method import memory as rules
from lift_ds.method.components import Component
from lift_ds.method.difficulty import level_bin
from lift_ds.method.memory import Records
from lift_ds.objectives import make_objective, objective_settings
from lift_ds.objectives.objective import superset_level
from lift_ds.ranks.background import NoLinks, ThreadRanks
from lift_ds.rng import Stream, keyed_uniform
from lift_ds.training import memory as module
from lift_ds.training import memory_files
from lift_ds.training.buffers import DifficultyBuffers
from lift_ds.training.memory import DifficultyMemory
from lift_ds.training.memory_files import places_read
from lift_ds.training.results import Observed
from tests.conftest import save_difficulties
from tests.data.order import test_loader as loaders

path, tokenizer = loaders.path, loaders.tokenizer  # fixtures

STEPS, BLOCK, VOCABULARY = 16, 8, 2048  # 90 rows, 12 a step: two epochs


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(rules, "BLOCK_ROWS", BLOCK)
    monkeypatch.setattr(memory_files, "BLOCK_ROWS", BLOCK)


def settings(budget=0.25, level_per="document"):
    return objective_settings(method="lift3", scoring="memory", scoring_budget=budget, level_per=level_per)


def nll_of(row, length, step):
    """The same for a row in a step, wherever it is computed."""
    return 4 * torch.from_numpy(keyed_uniform(step, 0, row, Stream.DROPOUT, length)) ** 2


def passes_of(objective, batch, step):
    """What the passes would show, had a model these losses."""
    nll = torch.zeros_like(batch.mask_uniform)
    for row, (sample, length) in enumerate(zip(batch.sample_ids, batch.lengths, strict=True)):
        if sample >= 0:
            nll[row, :length] = nll_of(sample, length, step)
    candidates = objective.noise(batch)
    scored = torch.zeros_like(batch.response_mask)
    scored[candidates.scored] = candidates.superset[candidates.scored]
    shown = [(scored, superset_level(batch), scored & False)] if objective.scoring_pass != "none" else []
    chosen = objective.choose(batch, candidates, torch.where(scored, -nll, 0)).targets
    shown.append((chosen, batch.per_token(batch.t), batch.per_token(batch.component != Component.RANDOM)))
    found = []
    for mask, levels, is_chosen in shown:
        at = mask.flatten().nonzero()[:, 0]
        columns = (batch.clean_ids, levels, nll)
        found.append(
            Observed(
                *(each.flatten()[at] for each in columns),
                at,
                *(m.flatten()[at] for m in (batch.filler_mask, is_chosen)),
            )
        )
    return found


def run(
    path,
    tokenizer,
    world,
    micro_batch,
    count,
    folder,
    start=None,
    capacity=None,
    budget=0.25,
    num_steps=STEPS,
    level_per="document",
):
    """Steps of all ranks as threads, then a save; `start` is (step, data position, folder of the memory)."""
    threads, stopping = loaders.RankThreads(world), threading.Event()
    objective = make_objective(settings(budget, level_per))

    def of_rank(rank):
        ranks = ThreadRanks(threads.links(rank), rank, world, stopping)
        memory = DifficultyMemory(DifficultyBuffers(VOCABULARY, ranks, 0.95, sync_every=1), ranks, budget, num_steps)
        first, state, saved = start or (0, None, None)
        if start:
            assert memory.load(saved, first)
        loader = loaders.make_loader(
            path, tokenizer, rank, world, micro_batch, first, state, capacity=capacity, links=threads.links(rank),
            objective=settings(budget, level_per), difficulties=memory,
        )  # fmt: skip
        state, seen = loader.state, []
        for step in range(first, first + count):
            batch = loader.make_step(step, state)
            state = batch.state
            memory.release()  # as the loop does when it begins a step
            passes = [(each, shown) for each in batch.micro_batches for shown in passes_of(objective, each, step)]
            memory.take(passes, step + 1)
            seen.append(known_of(batch))
        if first + count < num_steps:  # the loader is ahead
            loader.make_step(first + count, state)
        save_difficulties(memory, folder)
        return state, seen, memory

    with ThreadPoolExecutor(world) as pool:
        states, seen, memories = zip(*pool.map(of_rank, range(world)), strict=True)
    return merge_states(list(states)), [sorted(chain(*step)) for step in zip(*seen, strict=True)], memories


def known_of(step):
    """Of each document of a step: its row, whether it is scored, and what is expected of its tokens."""
    return [
        (sample, bool(batch.is_refreshed[row]), batch.difficulty[row, : batch.lengths[row]].tolist())
        for batch in step.micro_batches
        for row, sample in enumerate(batch.sample_ids)
        if sample >= 0
    ]


def saved_blocks(folder):
    """All ranks' blocks, and all that is pending, in the order in which it will be applied."""
    blocks, pending = {}, {}
    for file in sorted((folder / "difficulty_memory").iterdir()):
        tensors = load_file(file)
        blocks |= {name: values.tolist() for name, values in tensors.items() if name.startswith("block")}
        for name, values in tensors.items():
            if name.startswith("pending") and name.endswith(".0"):
                documents = np.frombuffer(values.tobytes(), module.SHOWN)
                pending.setdefault(name, []).extend(documents.tolist())
        numbers = (tensors["numbers"].tolist(), tensors["num_documents"].tolist())
    return blocks, {name: sorted(values) for name, values in pending.items()}, numbers


@pytest.mark.parametrize(
    ("capacity", "level_per"),
    [(None, "document"), (80, "document"), (80, "block")],
    ids=["one row a slot", "packed", "levels by block"],
)
def test_ranks_micro_batches_and_resumes_change_nothing(path, tokenizer, tmp_path, capacity, level_per):
    """Blocks, choices and expectations are bit for bit those of one rank, stopped anywhere, on any number of ranks."""
    options = {"capacity": capacity, "level_per": level_per}
    _, expected, _ = run(path, tokenizer, 1, 12, STEPS, tmp_path / "one", **options)
    blocks = saved_blocks(tmp_path / "one")
    assert any(scored for step in expected for _, scored, _ in step)
    assert any(max(nll, default=0) > 0 for step in expected[6:] for _, _, nll in step)
    for world, micro_batch, other, cut in ((2, 3, 3, 1), (3, 1, 2, 5), (5, 2, 1, 8), (1, 4, 4, 14), (4, 3, 5, 15)):
        first, then = (tmp_path / f"{world}-{cut}-{part}" for part in "ab")
        state, before, _ = run(path, tokenizer, world, micro_batch, cut, first, **options)
        _, after, _ = run(path, tokenizer, other, 4, STEPS - cut, then, (cut, state, first), **options)
        assert before + after == expected
        assert saved_blocks(then) == blocks


def test_a_step_reads_the_state_of_the_step_before_last(path, tokenizer, tmp_path):
    """What step s - 1 shows is not in step s: nothing is known in the first two steps, and something in the third."""
    _, seen, _ = run(path, tokenizer, 2, 3, 4, tmp_path, num_steps=4)
    known = [any(any(nll) for _, _, nll in step) for step in seen]
    assert known == [False, False, True, True]


@pytest.mark.parametrize("budget", [0.0, 0.125, 0.3, 1.0])
def test_the_budget_is_a_share_of_all_documents(path, tokenizer, tmp_path, budget):
    """Fractions carry over; with 1 everything that is chosen by score is scored, with 0 nothing."""
    _, seen, memories = run(path, tokenizer, 3, 2, STEPS, tmp_path, budget=budget)
    objective, num_scored = make_objective(settings(budget)), 0
    assert (objective.scoring_pass == "none") == (budget == 0)
    for number, step in enumerate(seen, 1):
        num_scored += sum(scored for _, scored, _ in step)
        if budget < 1:
            assert num_scored == int(Fraction(str(budget)) * loaders.GLOBAL_BATCH * number)
    if budget == 1:
        assert num_scored > STEPS * loaders.GLOBAL_BATCH / 2
    assert sum(memory.rows.num_tokens for memory in memories) > 300


@pytest.mark.parametrize("level_per", ["document", "block"])
def test_what_was_shown_is_what_is_remembered(path, tokenizer, tmp_path, level_per):
    """Of one row of one rank: the residuals are what the passes showed less what the table says of such tokens."""
    _, _, (memory,) = run(path, tokenizer, 1, 12, 1, tmp_path, num_steps=1, level_per=level_per)
    step, shown = memory.held
    assert step == 0 and len(shown.documents) > loaders.GLOBAL_BATCH  # scored ones come twice
    memory.release()
    memory.prepare(2, [], [])
    document = shown.documents[0]
    places = shown.places[: document["count"]]
    assert (np.diff(places) > 0).all() and places[-1] < document["size"]
    found = Records.unpacked(memory.rows.read(int(document["row"]), int(document["size"])))
    assert (found.counts[places] >= 1).all()
    table = memory.table.look_up(torch.from_numpy(shown.token_ids), torch.from_numpy(shown.levels)).numpy()
    rows = shown.documents["row"].repeat(shown.documents["count"])
    for row, place in {(int(row), int(place)) for row, place in zip(rows, shown.places, strict=True)}:
        mine = (rows == row) & (shown.places == place)
        residuals = shown.nll[mine] - table[mine]
        expected = residuals[0] if len(residuals) == 1 else residuals.mean()
        size = int(shown.documents["size"][shown.documents["row"] == row][0])
        records = Records.unpacked(memory.rows.read(row, size))
        assert records.residuals[place] == pytest.approx(expected, abs=0.2)
        assert records.bins[place] == level_bin(torch.from_numpy(shown.levels[mine]))[-1]  # of its block, if it has one
    by_document = np.split(level_bin(torch.from_numpy(shown.levels)).numpy(), shown.documents["count"].cumsum()[:-1])
    assert any(len({*bins.tolist()}) > 1 for bins in by_document) is (level_per == "block")


def test_tokens_that_are_thought_too_hard_to_keep_converge_within_eight_passes(path, tokenizer, tmp_path):
    """All that is known after five steps is made 12 nats harder: easy documents leave these tokens out.

    Random and hard documents, and those that are scored, put that right.
    """
    first, num_steps = 5, 5 + 8 * 85 // loaders.GLOBAL_BATCH
    options = {"budget": 0.125, "num_steps": num_steps}
    state, _, (memory,) = run(path, tokenizer, 1, 12, first, tmp_path, **options)
    spoilt = {}
    for number, block in memory.rows.blocks.items():
        is_known = Records.unpacked(block.in_order()).counts > 0
        rows = Records(*(np.full(is_known.sum(), value) for value in (np.float32(12), 15, 3)))
        block.records, block.starts = block.in_order(), np.cumsum(block.sizes).astype(np.int32) - block.sizes
        block.records[is_known] = rows.packed()
        spoilt |= {(number, index): block.row(index) > 0 for index in block.sizes.nonzero()[0].tolist()}
    save_difficulties(memory, tmp_path)
    run_on = (first, state, tmp_path)
    _, _, (after,) = run(path, tokenizer, 1, 12, num_steps - first, tmp_path, run_on, **options)
    errors = [
        Records.unpacked(after.rows.blocks[number].row(index)[known]).residuals
        for (number, index), known in spoilt.items()
    ]
    errors = np.abs(np.concatenate(errors))
    assert len(errors) > 50 and np.median(errors) < 1.0 and (errors < 4.0).mean() > 0.9


def test_nobody_is_waited_for_when_the_run_ends():
    stopping = threading.Event()
    ranks = ThreadRanks(NoLinks(), 0, 1, stopping)
    memory = DifficultyMemory(DifficultyBuffers(9, ranks, 0.9, 1), ranks, 0.0, 10)
    assert memory.prepare(0, [], []) == memory.prepare(1, [], []) == []
    stopping.set()
    with pytest.raises(RuntimeError, match="stopped while the step before"):
        memory.prepare(2, [], [])
    memory.take([], 1)
    memory.held = (4, memory.held[1])
    with pytest.raises(RuntimeError, match="was not brought up to date: stopped"):
        memory.files()


@pytest.mark.parametrize("num_files", [1, 2, 3, 4, 6, 8])
@pytest.mark.parametrize("world", [1, 2, 3, 4, 6, 8])
def test_a_rank_opens_the_files_that_have_its_blocks(world, num_files):
    """All that it owns and all pending documents that fall to it, and one file where the ranks are as many."""
    for rank in range(world):
        read = places_read(rank, world, num_files)
        blocks = {number for number in range(48) if number % world == rank}
        assert {number % num_files for number in blocks} == set(read)
        assert set(range(rank, num_files, world)) <= set(read)
        assert world != num_files or list(read) == [rank]


def test_a_missing_part_is_an_error(path, tokenizer, tmp_path):
    state, _, _ = run(path, tokenizer, 2, 3, 3, tmp_path)
    (tmp_path / "difficulty_memory" / "rank-00001-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match="1 files of 2; a rank's part is missing"):
        run(path, tokenizer, 1, 3, 1, tmp_path / "other", (3, state, tmp_path))
