"""What ranks do with one folder together: they see that it is one, and read a checkpoint's bytes in shares."""

import os
import socket
import threading

import pytest
import torch

from lift_ds.cli.train import make_parser
from lift_ds.cli.train_settings import read_settings
from lift_ds.ranks.shares import Alone, Collectives
from lift_ds.storage import manifest
from lift_ds.storage.manifest import find_checkpoint
from lift_ds.training import run_files
from lift_ds.training.resumed import find_together
from lift_ds.training.run_files import LOCK, claimed
from tests.conftest import REPOSITORY
from tests.ranks.two_ranks import on_two_ranks
from tests.storage.test_manifest import make_checkpoint

REMEDY = "another working folder? Name a folder on a file system that all nodes share, with its whole path"


def find(folder, resume):
    """What a rank finds, or its error; and the files that it has read of each checkpoint."""
    read, hash_file = [], manifest.hash_file

    def noted(path):
        read.append(f"{path.parent.parent.name} {path.name}")
        return hash_file(path)

    manifest.hash_file = noted
    try:
        return find_together(folder, resume, Collectives(torch.device("cpu"))), sorted(read)
    except ValueError as error:
        return str(error), sorted(read)
    finally:
        manifest.hash_file = hash_file


@pytest.mark.distributed
@pytest.mark.parametrize("broken", ["shard0.pt", "shard1.pt"])
def test_what_either_rank_finds_broken_is_named_on_both(tmp_path, broken):
    """As one process finds it, though each rank reads one file, 1000 bytes, of each checkpoint."""
    folder = tmp_path / "checkpoints"
    for step in (10, 20):
        make_checkpoint(folder, step)
    (folder / "step-000020" / "zero" / broken).write_bytes(b"x" * 1000)
    expected = find_checkpoint(folder, "auto")
    fault = f"zero/{broken} has changed (checksum)"
    assert expected == (folder / "step-000010", [f"step-000020: {fault}"])
    found = on_two_ranks(lambda rank: find(folder, "auto"), tmp_path)
    assert [each for each, _ in found] == [expected, expected]
    by_rank = [read for _, read in found]
    assert all(len(read) == 2 for read in by_rank) and not set(by_rank[0]) & set(by_rank[1])
    (tmp_path / "named").mkdir()
    named = on_two_ranks(lambda rank: find(folder, str(folder / "step-000020")), tmp_path / "named")
    message = f"checkpoint.resume={folder}/step-000020: not whole: {fault}."
    assert [each for each, _ in named] == [message, message]


def test_one_rank_reads_all(tmp_path):
    make_checkpoint(tmp_path, 10)
    assert find_together(tmp_path, "auto", Alone()) == (tmp_path / "step-000010", [])
    assert find_together(tmp_path, "none", Alone()) == (None, [])


def claim(rank, places, seconds, late=None):
    """Claims `runs/001` from a working folder of this rank, into which `late` (link, target) appears after a second."""
    os.chdir(places[rank])
    run_files.SHARED_SECONDS = seconds
    if rank == 1 and late is not None:
        threading.Timer(1.0, lambda: late[0].symlink_to(late[1])).start()
    ranks = Collectives(torch.device("cpu"))
    with claimed("runs/001", True, ranks) as output:
        ranks.barrier()
        there = os.listdir(output)
        ranks.barrier()  # rank 0 removes it when it ends: nothing came of the run
        return output, there


@pytest.mark.distributed
def test_a_folder_that_is_not_the_same_on_all_ranks(tmp_path):
    """Two working folders stand for two nodes' own disks: rank 1 has no runs/001, or one of its own."""
    places = [tmp_path / "first", tmp_path / "second"]
    for place in places:
        place.mkdir()
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        errors = on_two_ranks(lambda rank: claim(rank, places, 0.5), tmp_path / str(number))
        expected = f"output=runs/001: what rank 0 writes there is not seen by rank 1 on {socket.gethostname()}: "
        for error in errors:
            assert isinstance(error, ValueError)
            assert str(error).startswith(expected) and str(error).endswith(REMEDY)
        assert not (places[0] / "runs" / "001").exists()  # nothing has come of the run
        (places[1] / "runs" / "001").mkdir(parents=True, exist_ok=True)


@pytest.mark.distributed
def test_a_folder_that_appears_late(tmp_path):
    """As on NFS; no token is left."""
    places = [tmp_path / "first", tmp_path / "second"]
    for place in places:
        place.mkdir()
    found = on_two_ranks(lambda rank: claim(rank, places, 20.0, (places[1] / "runs", places[0] / "runs")), tmp_path)
    assert found == [("runs/001", [LOCK])] * 2


class SecondDiffers(Alone):
    """Rank 0 of two, of which the other has found other settings."""

    def __init__(self, differ):
        super().__init__()
        self.differ = differ

    def gather_objects(self, mine):
        return [mine, ("node2", mine[1] | self.differ)]


def test_ranks_that_found_other_settings(tmp_path, monkeypatch):
    """Another run to go on with, another recipe; the name of a new folder may differ: rank 0's is taken."""
    monkeypatch.chdir(tmp_path)
    given = make_parser().parse_intermixed_args(["--deepspeed", str(REPOSITORY / "ds_configs" / "zero3.json")])
    settings = read_settings(given)
    assert settings.is_numbered and settings.run.output == "runs/001"
    settings.require_same(SecondDiffers({}), {"zero_optimization": {"stage": 3}})
    expected = (
        f"rank 1 on node2 starts with other settings than rank 0: optim.lr: {settings.run.optim.lr} -> 3.0; "
        "run that goes on: none -> runs/007. All nodes need the same files"
    )
    with pytest.raises(ValueError) as caught:
        settings.require_same(SecondDiffers({"optim.lr": 3.0, "run that goes on": "runs/007"}), {})
    assert str(caught.value).startswith(expected)
    with pytest.raises(ValueError, match=r"deepspeed\.zero_optimization\.stage: 3 -> 2"):
        settings.require_same(
            SecondDiffers({"deepspeed.zero_optimization.stage": 2}), {"zero_optimization": {"stage": 3}}
        )
