"""Ranks that wait for rank 0's work for longer than the default group allows."""

import os
import sys
import time
from datetime import timedelta

import pytest
import torch

from lift_ds.ranks import control
from lift_ds.ranks.launch import CONTROL_LIMIT
from lift_ds.ranks.shares import Collectives, balanced
from tests.conftest import run
from tests.ranks.two_ranks import DEFAULT_SECONDS, on_two_ranks

pytestmark = pytest.mark.distributed


def work():
    time.sleep(DEFAULT_SECONDS + 1.5)
    return "hashed"


def wait_in_control(rank):
    ranks = Collectives(torch.device("cpu"))
    assert Collectives(torch.device("cpu")).control is ranks.control  # made once
    first = ranks.on_main(work)
    if rank == 0:
        work()
    gathered = ranks.gather_objects(rank)
    if rank == 1:
        work()
    ranks.barrier()
    return first, gathered, float(ranks.all_reduce(torch.tensor([rank + 1.0])))


def wait_in_default(rank):
    if rank == 0:
        work()
    torch.distributed.barrier()


def test_rank_0_may_work_for_longer_than_the_default_group_waits(tmp_path):
    """3.5 s of work, three times, where the default group waits for 2 s; tensors, 1 + 2, still move in that one."""
    assert on_two_ranks(wait_in_control, tmp_path) == [("hashed", [0, 1], 3.0)] * 2
    (tmp_path / "default").mkdir()
    ended = on_two_ranks(wait_in_default, tmp_path / "default")
    assert isinstance(ended[1], RuntimeError) and "imed out" in str(ended[1])  # so the time-out is one


def wait_too_long(rank):
    control.control_group(timedelta(seconds=1))
    return Collectives(torch.device("cpu")).on_main(work)


def test_a_wait_that_is_too_long_names_the_variable(tmp_path):
    _, late = on_two_ranks(wait_too_long, tmp_path)
    assert isinstance(late, RuntimeError)
    assert str(late).startswith("rank 1 on ")
    assert "LIFT_DS_CONTROL_TIMEOUT is the time in minutes (default 120)" in str(late)


def leave_silently(rank):
    ranks = Collectives(torch.device("cpu"))
    if rank == 0:
        torch.distributed.destroy_process_group(ranks.control)
        return None
    return ranks.gather_objects(rank)


def test_a_rank_that_leaves(tmp_path):
    _, left = on_two_ranks(leave_silently, tmp_path)
    assert str(left).startswith("another rank has left without a word: ")


def test_the_time_is_minutes(monkeypatch):
    monkeypatch.setenv(CONTROL_LIMIT, "2h")
    with pytest.raises(RuntimeError, match="^LIFT_DS_CONTROL_TIMEOUT=2h: a whole number from 1 is needed$"):
        control.number_in(CONTROL_LIMIT, 1, control.CONTROL_MINUTES)


def test_the_interface_is_the_one_towards_rank_0():
    """None for this machine itself, and where no address is known."""
    assert control.interface_towards("127.0.0.1") is None
    assert control.interface_towards("") is None
    own = control.interface_towards("192.0.2.1")  # reserved for documentation: whatever leads out of here, if anything
    assert own is None or os.path.isdir(f"/sys/class/net/{own}")


def test_shares_are_of_about_the_same_size():
    """9, 5, 4 to one each; 3 to the 4; both 2 to the 5; 1 to the 4 + 3: 9, 9 and 8 in all."""
    sizes = {"a": 2, "b": 9, "c": 4, "d": 5, "e": 3, "f": 2, "g": 1}
    assert balanced(sizes, 3) == [["b"], ["d", "a", "f"], ["c", "e", "g"]]
    assert balanced({"a": 1}, 2) == [["a"], []]


MANY_RANKS = """
import resource, sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from torch.distributed import HashStore, ProcessGroupGloo
from lift_ds.ranks.control import allow_open_files

resource.setrlimit(resource.RLIMIT_NOFILE, (200, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
if sys.argv[1] == "allowed":
    allow_open_files()
store = HashStore()
with ThreadPoolExecutor(16) as pool:
    groups = list(pool.map(lambda rank: ProcessGroupGloo(store, rank, 16, timedelta(seconds=20)), range(16)))
print("all there", flush=True)
"""


def test_ranks_may_open_as_many_files_as_their_group_needs():
    """16 ranks of a group hold 15 connections each, 240 in all; where 200 files are allowed, gloo ends the process."""
    few = run([sys.executable, "-c", MANY_RANKS, "few"], check=False)
    assert few.returncode != 0 and "Too many open files" in few.stdout
    assert run([sys.executable, "-c", MANY_RANKS, "allowed"]).stdout.endswith("all there\n")
