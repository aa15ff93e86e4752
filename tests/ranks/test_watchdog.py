"""A step that is stuck ends, and every rank says where it is; also ranks that can say nothing."""

import json
import os
import signal
import subprocess
import threading
import time

import pytest

from lift_ds.ranks.watchdog import Activity, Watchdog
from tests.conftest import REPOSITORY, SMALL, clean_environment, free_port, latest, launch_train


class Store(dict):
    """Texts of ranks that are threads here."""

    def set(self, key, value):
        self[key] = value.encode()

    def get(self, key):
        return self[key]

    def check(self, keys):
        return all(key in self for key in keys)

    def compare_set(self, key, expected, desired):
        return self.setdefault(key, desired.encode())


def watched(activity, store, limit, rank=0, world_size=3):
    """Until the watchdog ends the process, or two seconds have passed; with which status."""
    ended, statuses = threading.Event(), []

    def end(status):
        statuses.append(status)
        ended.set()

    watchdog = Watchdog(activity, rank, world_size, limit, store, end)
    ended.wait(2 + (18 if limit == 0.5 else 0))
    watchdog.close()
    return statuses


def test_a_part_that_takes_too_long(capsys):
    activity, store = Activity(), Store()
    store.set("doing/1", json.dumps({"host": "b", "number": 9, "doing": "step 7, data for 100 s"}))
    activity.begin(7)
    activity.at("backward")
    assert watched(activity, store, 0.5) == [1]
    said = capsys.readouterr().err
    assert "rank 0 on " in said and "is stuck: step 7, backward for " in said
    assert "in watched" in said  # where the main thread is
    assert "  rank 1 on b: step 7, data for 100 s; NO SIGN OF LIFE since" in said
    assert "  rank 0 on " in said and said.count("NO SIGN OF LIFE") == 1
    assert "  rank 2: has told nothing" in said


def test_a_store_that_never_answers(capsys):
    """Rank 0 is stopped, and holds it: whoever asks waits, and so does everyone else who uses the same client."""
    client = threading.Lock()

    class Silent(Store):
        def set(self, key, value):
            with client:
                super().set(key, value)

        def compare_set(self, key, expected, desired):
            with client:
                threading.Event().wait()

    activity = Activity()
    activity.begin(7)
    assert watched(activity, Silent(), 0.5) == [1]
    assert "rank 0, where the ranks tell each other, does not answer" in capsys.readouterr().err


def test_what_is_not_watched():
    activity, store = Activity(), Store()
    assert activity.at("data") == "" and activity.doing is None  # between steps
    assert watched(activity, store, 0.2) == []
    told = json.loads(store.get("doing/0"))
    assert told["doing"] is None and told["number"] > 5
    activity.begin(1)
    assert watched(activity, store, 0.0) == []


def test_parts_go_back_to_the_one_around_them():
    activity = Activity()
    activity.begin(3)
    assert activity.at("data") == "planning" and activity.at("waiting") == "data"
    activity.at("data")
    assert (activity.doing.step, activity.doing.part) == (3, "data")
    activity.rest()
    assert activity.doing is None


@pytest.mark.distributed
def test_a_rank_that_is_stopped(tiny_dir, tmp_path):
    """SIGSTOP to rank 1: rank 0 names it, and the run ends; the checkpoint before it is whole."""
    output = tmp_path / "run"
    command = ["torchrun", "--nproc_per_node", "2", "--master_port", str(free_port()), "launchers/train.py"]
    settings = ["optim.steps=100000", "checkpoint.save_every=2", "runtime.timeout=0.05", "eval.rows=0"]
    command += latest(*SMALL, "--model", tiny_dir, "--output", output, "eval.solve_items=0", *settings)
    with open(tmp_path / "printed.txt", "w") as printed:
        process = subprocess.Popen(
            command, cwd=REPOSITORY, env=clean_environment(), stdout=printed, stderr=printed, start_new_session=True
        )
        try:
            deadline = time.monotonic() + 240
            while not (output / "checkpoints" / "latest").is_file():
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.05)
            ranks = subprocess.run(["pgrep", "-f", f"python.*{output}"], text=True, capture_output=True).stdout.split()
            of_rank = {rank_of(int(pid)): int(pid) for pid in ranks}
            os.kill(of_rank["1"], signal.SIGSTOP)
            since = time.monotonic()
            while os.path.exists(f"/proc/{of_rank['0']}") and time.monotonic() - since < 150:
                time.sleep(0.1)
            assert time.monotonic() - since < 150
        finally:
            for pid in of_rank.values():
                if os.path.exists(f"/proc/{pid}"):
                    os.kill(pid, signal.SIGKILL)
            process.wait(timeout=60)
    assert process.returncode != 0
    said = (tmp_path / "printed.txt").read_text()
    assert "rank 0 on " in said and "is stuck: step " in said and "runtime.timeout is 0.05 minutes" in said
    line = next(line for line in said.splitlines() if line.startswith("  rank 1 on "))
    assert "NO SIGN OF LIFE" in line
    newest = (output / "checkpoints" / "latest").read_text().strip()
    goes_on = ["--resume", "auto", f"optim.steps={int(newest[5:]) + 1}", "eval.rows=0", "eval.solve_items=0"]
    done = launch_train(*SMALL, "--model", tiny_dir, "--output", output, *goes_on)
    assert f"resumed from {output}/checkpoints/{newest}" in done.stdout


def rank_of(pid):
    with open(f"/proc/{pid}/environ", "rb") as file:
        pairs = dict(line.partition(b"=")[::2] for line in file.read().split(b"\0"))
    return pairs.get(b"RANK", b"").decode()


@pytest.mark.distributed
def test_too_few_machines(tiny_dir, tmp_path):
    done = launch_train(*SMALL, "--model", tiny_dir, "--output", tmp_path / "run", "runtime.nodes=2", check=False)
    assert done.returncode == 2 and not (tmp_path / "run" / "checkpoints").exists()
    assert "runtime.nodes=2, but the ranks are on 1: " in done.stdout
