"""What ranks compare before they train: everything that differs is said at once, where it is and what to do."""

import shutil
from dataclasses import replace

import pytest

from lift_ds.config.training import CheckpointConfig
from lift_ds.ranks.launch import Launch
from lift_ds.training.preflight import (
    SAMPLE_BYTES,
    Facts,
    compare_ranks,
    facts_of,
    find_differences,
    model_digests,
    num_checkpoints,
)
from tests.conftest import SMALL, Share, launch_train

FACTS = Facts(0, "node1", {"python": "3.11.7", "torch": "2.13.0"}, "abc", {"config.json": "1", "a.model": "2"}, 1e9)


def test_nothing_differs():
    second = replace(FACTS, rank=1, host="node2", clock=1e9 + 2)
    assert find_differences([FACTS, second, replace(second, rank=2, model=None)]) == []


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"versions": {"python": "3.11.2", "torch": "2.11.0"}},
            "versions on node2: python 3.11.2, not 3.11.7; torch 2.11.0, not 2.13.0: install the same",
        ),
        ({"versions": {"python": "3.11.7"}}, "versions on node2: torch None, not 2.13.0"),
        ({"code": "def"}, "another lift_ds on node2: def, not abc: check out the same commit"),
        ({"model": {"config.json": "1", "a.model": "3"}}, "another model on node2: a.model differ from rank 0's"),
        ({"model": {"config.json": "1"}}, "another model on node2: a.model differ"),
        ({"clock": 1e9 - 7200}, "the clock on node2 is -7200 s from rank 0's: set it"),
    ],
)
def test_what_differs_on_one_machine(changes, line):
    """Said once, whatever number of ranks is there."""
    others = [replace(FACTS, rank=rank, host="node2", **changes) for rank in (1, 2)]
    (problem,) = find_differences([FACTS, *others])
    assert problem.startswith(line)


def test_digests_of_a_model(tmp_path):
    """Large files by samples, which reach both ends; other files of the folder do not count."""
    large = bytearray(20 * SAMPLE_BYTES)
    (tmp_path / "model.safetensors").write_bytes(large)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "README.md").write_text("any")
    first = model_digests(tmp_path)
    assert sorted(first) == ["config.json", "model.safetensors"]
    for place in (0, len(large) - 1):
        large[place] ^= 1
        (tmp_path / "model.safetensors").write_bytes(large)
        assert model_digests(tmp_path)["model.safetensors"] != first["model.safetensors"]
        large[place] ^= 1
    (tmp_path / "model.safetensors").write_bytes(large[:-1])
    assert model_digests(tmp_path)["model.safetensors"] != first["model.safetensors"]
    assert model_digests(tmp_path)["config.json"] == first["config.json"]


@pytest.mark.parametrize(
    ("save_every", "keep", "there", "expected"),
    [(10, 3, 0, 4), (10, 99, 0, 10), (0, 3, 0, 1), (10, 3, 3, 1), (10, 3, 9, 1), (100, 2, 0, 1), (30, 2, 0, 3)],
)
def test_room_for_checkpoints(tmp_path, save_every, keep, there, expected):
    """Of 100 steps: the kept ones and one that is written before the oldest goes; those that are there have theirs."""
    for step in range(there):
        (tmp_path / f"step-{step:06d}").mkdir()
    assert num_checkpoints(CheckpointConfig(save_every=save_every, keep=keep), 100, tmp_path) == expected


class Pair(Share):
    """Two ranks, of which the other one says what it is given."""

    def __init__(self, change):
        super().__init__(0, 2)
        self.change = change

    def gather_objects(self, mine):
        return [mine, self.change(mine) if isinstance(mine, Facts) else mine]

    def on_main(self, action):
        return action()

    def barrier(self):
        pass


def test_everything_is_said_at_once(tiny_dir, tmp_path):
    free = shutil.disk_usage(tmp_path).free
    ranks = Pair(lambda facts: replace(facts, host="b", code="other", versions=facts.versions | {"torch": "1.0"}))
    with pytest.raises(ValueError, match="before training:\n") as caught:
        compare_ranks(Launch(0, 2, 0, 1), ranks, tiny_dir, tmp_path, free, lambda: 3)
    lines = str(caught.value).splitlines()[1:]
    assert [line[:14] for line in lines] == ["  - versions o", "  - another li", "  - the disk: "]
    assert lines[2].endswith("make room, lower checkpoint.keep, or set another output")


def test_a_rank_that_is_not_its_machines_first_reads_no_model(tiny_dir):
    assert facts_of(Launch(1, 2, 1, 2), tiny_dir).model is None
    assert "config.json" in facts_of(Launch(0, 2, 0, 2), tiny_dir).model


@pytest.mark.distributed
def test_two_ranks_say_what_they_found(tiny_dir, tmp_path):
    printed = launch_train(*SMALL, "--model", tiny_dir, "--output", tmp_path / "run").stdout
    lines = printed[printed.index("before training") :].splitlines()
    assert lines[1].startswith("  2 ranks on 1 machine") and "torch 2." in lines[1]
    assert [line.split()[0] for line in lines[2:6]] == ["model", "clocks", "disk", "all-reduce"]
    assert "GB/s" in lines[5] and "2 checkpoints take" in lines[4]
