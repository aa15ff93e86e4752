"""Work that one rank does for the others, on real processes that meet."""

import multiprocessing
import os
import sys
import time
from datetime import timedelta

import pytest

from lift_ds.ranks import meeting, once
from lift_ds.ranks.launch import free_port
from lift_ds.ranks.once import PART_BYTES, Once
from lift_ds.ranks.running import run_on_ranks

pytestmark = pytest.mark.distributed


class ManyError(ValueError):
    """One with a list, as of several problems."""


def act(launch, host, actions, log):
    once.socket.gethostname = lambda: host
    meeting.meet(launch, timedelta(seconds=20))

    def work():
        with log.open("a") as file:
            file.write(f"{launch.rank} ")
        return actions[launch.rank](host)

    try:
        result = Once(launch).per_node("fetching", work)
    except ValueError as error:
        print(type(error).__name__, "at its place", flush=True)
        raise error
    print(str(result)[:40], len(str(result)), flush=True)


def run_rank(environment, output, *given):
    os.environ.update(environment)
    sys.stdout = sys.stderr = output.open("a", buffering=1)
    run_on_ranks(lambda launch: act(launch, *given))
    os._exit(0)


def start(tmp_path, local_ranks, hosts, actions):
    """Runs ranks of these numbers on these hosts; exit statuses, outputs, and the ranks that worked."""
    port, log, context, running = free_port(), tmp_path / "log", multiprocessing.get_context("fork"), []
    log.touch()
    for rank, (local_rank, host) in enumerate(zip(local_ranks, hosts, strict=True)):
        values = {"RANK": rank, "WORLD_SIZE": len(hosts), "LOCAL_RANK": local_rank, "LOCAL_WORLD_SIZE": 2}
        environment = {name: str(value) for name, value in values.items()}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        output = tmp_path / f"{rank}.log"
        process = context.Process(target=run_rank, args=(environment, output, host, actions, log))
        process.start()
        running.append((process, output))
    since = time.monotonic()
    for process, _ in running:
        process.join(60)
        process.kill()
    assert time.monotonic() - since < 20
    printed = [output.read_text() for _, output in running]
    return [process.exitcode for process, _ in running], printed, sorted(map(int, log.read_text().split()))


def test_the_first_rank_of_each_machine_works(tmp_path):
    """Two machines of two ranks: ranks 0 and 2 work, the others have what their own machine's rank has found."""
    codes, printed, worked = start(tmp_path, [0, 1, 0, 1], "aabb", dict.fromkeys(range(4), lambda host: f"in {host}"))
    assert codes == [0] * 4
    assert printed == ["in a 4\n"] * 2 + ["in b 4\n"] * 2
    assert worked == [0, 2]


def test_more_than_the_store_takes_at_once(tmp_path):
    """Three parts and a bit."""
    length = 3 * PART_BYTES
    codes, printed, _ = start(tmp_path, [0, 1], "aa", {0: lambda _: "x" * length})
    assert codes == [0, 0]
    assert printed[0] == printed[1] == f"{'x' * 40} {length}\n"


def test_an_error_of_rank_0_is_everyones_and_is_said_once(tmp_path):
    def fail(_):
        raise ManyError(["no file a", "no file b"])

    codes, printed, worked = start(tmp_path, [0, 1], "aa", {0: fail})
    assert codes == [2, 2]
    assert worked == [0]
    assert printed[0].count("error: ['no file a', 'no file b']\n") == 1
    assert "error" not in printed[1]
    assert printed[1] == "ValueError at its place\n"  # a type that only the tests know


def test_an_error_of_another_machine_names_it(tmp_path):
    """Rank 0, on machine a, is through; rank 2 finds no file on b: all end, and rank 0 says where."""

    def fail(_):
        raise ValueError("no such file")

    codes, printed, worked = start(tmp_path, [0, 1, 0, 1], "aabb", {0: lambda host: host, 2: fail})
    assert codes == [2] * 4
    assert worked == [0, 2]
    assert printed[0].endswith("no such file (on b, rank 2)\n")  # "ended by rank 2 on b: " may stand before it
    assert sum(text.count("error:") for text in printed) == 1


def test_where_both_fail_rank_0_speaks(tmp_path):
    """A name that is wrong everywhere is said without a place."""

    def fail(_):
        raise ValueError("no such folder")

    codes, printed, _ = start(tmp_path, [0, 0], "ab", {0: fail, 1: fail})
    assert codes == [2, 2]
    assert printed[0].endswith("error: no such folder\n")
    assert "error:" not in printed[1]


def test_an_error_that_nobody_expects_ends_the_others(tmp_path):
    def fail(_):
        raise RuntimeError("a bad disk")

    codes, printed, _ = start(tmp_path, [0, 1], "aa", {0: fail})
    assert codes == [1, 2]  # a fault, with its traceback
    assert printed[0].startswith("Traceback") and "RuntimeError: a bad disk" in printed[0]
    assert printed[1] == ""


def test_a_machine_without_a_first_rank(tmp_path):
    """It is said, and not waited for."""
    codes, printed, _ = start(tmp_path, [0, 1], "ab", {0: lambda host: host})
    assert codes[1] == 2
    assert printed[1].startswith("error on rank 1: rank 1 has LOCAL_RANK=1, but no rank on b has LOCAL_RANK=0")


def test_alone():
    assert Once(None).per_node("fetching", lambda: 3) == Once(None).per_run("counting", lambda: 3) == 3
