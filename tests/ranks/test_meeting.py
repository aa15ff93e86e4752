"""Ranks that meet before they do anything slow, and how they end when some of them fail."""

import multiprocessing
import os
import re
import subprocess
import sys
import time
from datetime import timedelta

import pytest
import torch

from lift_ds.ranks import meeting
from lift_ds.ranks.launch import free_port
from lift_ds.ranks.meeting import is_taken, listener_of
from lift_ds.ranks.running import run_on_ranks
from lift_ds.ranks.shares import Collectives

pytestmark = pytest.mark.distributed


def act(launch, fails, seconds):
    met = meeting.meet(launch, timedelta(seconds=seconds))
    failure = fails.get(launch.rank)
    if isinstance(failure, Exception):
        raise failure
    if failure is not None:
        raise ValueError(failure)
    met.gather("prepared")
    print(f"rank {launch.rank} is through", flush=True)


def wait_for_a_fault(launch, fails, seconds):
    """Rank 1 has a fault of its own, while rank 0 waits for it in the default group or the control group."""
    met = meeting.meet(launch, timedelta(seconds=seconds))
    store = torch.distributed.PrefixStore("group", met.store)
    torch.distributed.init_process_group("gloo", store=store, rank=launch.rank, world_size=2)
    ranks = Collectives(torch.device("cpu"))
    if launch.rank == 1:
        raise fails[1]
    {"control": ranks.barrier, "default": torch.distributed.barrier}[fails[0]]()


def run_rank(environment, output, fails, seconds, action):
    """One rank, in a forked process."""
    os.environ.update(environment)
    sys.stdout = sys.stderr = output.open("a", buffering=1)
    for number in (1, 2):  # of libraries
        os.dup2(sys.stdout.fileno(), number)
    meeting.SAY_EVERY_SECONDS = 0.5
    run_on_ranks(lambda launch: action(launch, fails, seconds))
    os._exit(0)


def start(tmp_path, ranks=(0, 1), world_size=2, fails=None, seconds=20.0, port=None, action=act):
    """Starts these ranks without a launcher that would end the others; their exit statuses, outputs and seconds."""
    port = port or free_port()
    context, running, since = multiprocessing.get_context("fork"), [], time.monotonic()
    for number, rank in enumerate(ranks):
        values = {"RANK": rank, "WORLD_SIZE": world_size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world_size}
        environment = {name: str(value) for name, value in values.items()}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        output = tmp_path / f"{number}.log"
        process = context.Process(target=run_rank, args=(environment, output, fails or {}, seconds, action))
        process.start()
        running.append((process, output))
    for process, _ in running:
        process.join(60)
        process.kill()
    took = time.monotonic() - since
    return [process.exitcode for process, _ in running], [output.read_text() for _, output in running], took


def test_they_meet_and_wait_for_each_other(tmp_path):
    codes, printed, _ = start(tmp_path)
    assert codes == [0, 0]
    assert printed == ["rank 0 is through\n", "rank 1 is through\n"]


def test_what_all_find_is_said_once(tmp_path):
    codes, printed, took = start(tmp_path, fails=dict.fromkeys((0, 1), "row 3 is bad"))
    assert codes == [2, 2]
    assert printed == ["error: row 3 is bad\n", ""]
    assert took < meeting.OTHERS_SECONDS  # nobody waits for more than the other's word


@pytest.mark.parametrize("rank", [0, 1])
def test_what_one_finds_is_said_by_it_and_ends_all(tmp_path, rank):
    """Nobody ends the other here; it does so itself, and silently: the message stands on this machine already."""
    codes, printed, took = start(tmp_path, fails={rank: "a bad disk"})
    assert codes == [2, 2]
    assert printed[rank] == f"error{' on rank 1' if rank else ''}: a bad disk\n"
    assert printed[1 - rank] == ""
    assert took < 10


def test_two_errors_are_both_said(tmp_path):
    codes, printed, _ = start(tmp_path, fails={0: "no file a", 1: "no file b"})
    assert codes == [2, 2]
    assert printed == ["error: no file a\n", "error on rank 1: no file b\n"]


def test_a_fault_that_all_have_is_shown_once(tmp_path):
    """With its traceback, of rank 0; where one rank has another error, that is shown as well."""
    codes, printed, _ = start(tmp_path, fails={0: TypeError("no number"), 1: TypeError("no number")})
    assert codes == [1, 1]
    assert printed[0].startswith("Traceback (most recent call last):\n")
    assert printed[0].endswith("raise failure\nTypeError: no number\nerror: TypeError: no number\n")
    assert printed[1] == ""
    codes, printed, _ = start(tmp_path, fails={0: "no file a", 1: RuntimeError("CUDA out of memory")}, port=free_port())
    assert codes == [2, 1]
    assert printed[0].endswith("error: no file a\n")
    assert printed[1].count("Traceback (most") == 1
    assert printed[1].endswith("error on rank 1: RuntimeError: CUDA out of memory\n")


@pytest.mark.parametrize("group", ["control", "default"])
def test_what_a_wait_fails_of_is_the_other_ranks_fault(tmp_path, group):
    """Shown with its traceback where it was; "Connection closed by peer", with another traceback, says no more."""
    codes, printed, took = start(tmp_path, fails={0: group, 1: TypeError("no number")}, action=wait_for_a_fault)
    assert codes == [{"control": 2, "default": 1}[group], 1]
    assert "Traceback" not in printed[0] and "error" not in printed[0]
    assert printed[1].count("Traceback (most") == 1
    assert printed[1].endswith("error on rank 1: TypeError: no number\n")
    assert took < 20


def test_a_rank_that_never_comes(tmp_path):
    """As where WORLD_SIZE=2 stands in the shell by accident: who is missing, then how to go on."""
    codes, (printed,), _ = start(tmp_path, ranks=[0], seconds=1.2)
    assert codes == [2]
    assert re.match(r"waiting at 127.0.0.1:\d+ for rank 1 \(start\), 1 s\n", printed)
    assert re.search(r"error: rank 1 of WORLD_SIZE=2 not at 127.0.0.1:\d+ \(start\) within 0.0 minutes. ", printed)
    assert "For one process: unset RANK WORLD_SIZE LOCAL_RANK MASTER_ADDR MASTER_PORT" in printed
    codes, (printed,), _ = start(tmp_path, ranks=[1], seconds=1.2)
    assert codes == [2]
    assert re.search(r"rank 1 waits for rank 0 at 127.0.0.1:\d+: Connection refused\n", printed)
    assert re.search(r"error on rank 1: rank 1 cannot reach 127.0.0.1:\d+, where the ranks meet", printed)


def test_the_same_rank_twice(tmp_path, monkeypatch):
    """As where a second run is told to meet at the same port."""
    monkeypatch.setattr(meeting, "OTHERS_SECONDS", 0.2)
    codes, printed, _ = start(tmp_path, ranks=[0, 1, 1])
    assert sorted(codes) == [0, 0, 2]
    said = next(text for text, code in zip(printed, codes, strict=True) if code == 2)
    assert "say that they are rank 1: another run meets there; give another one to the launcher" in said


LISTEN = "import socket; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True); input()"


def test_a_port_that_is_taken(tmp_path):
    """Said at once, with who has it and the flag to name another."""
    command = [sys.executable, "-c", LISTEN]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        port = int(other.stdout.readline())
        assert is_taken(port)
        assert listener_of(port).startswith(f"process {other.pid} ({sys.executable} -c import socket")
        codes, (printed,), took = start(tmp_path, ranks=[0], port=port)
        other.kill()
    assert codes == [2]
    assert took < 10
    assert printed.startswith(
        f"error: port {port}, where the ranks are to meet, is taken by process {other.pid} ({sys.executable} -c import"
    )
    assert "deepspeed --master_port 29501" in printed
    assert "--rdzv_endpoint localhost:29501" in printed
    assert not is_taken(port)
