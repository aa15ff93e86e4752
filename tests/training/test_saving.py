"""Checkpoints of two real ranks, written behind the training and at once."""

import re

import pytest

from lift_ds.planning import row_memory
from lift_ds.storage.manifest import read_manifest
from lift_ds.storage.run_folder import read_metrics
from tests.conftest import SMALL, latest, launch_train, losses_of, run_script

pytestmark = pytest.mark.distributed
RUN = [*SMALL, "checkpoint.save_every=2", "checkpoint.keep=9", "optim.steps=5", "eval.rows=4", "eval.solve_items=0"]
RUN += ["data.clock=2026-01-01T00:00:00"]
SETTINGS = {
    "zero3": [],
    "zero2": ["--deepspeed", "ds_configs/zero2.json"],
    "memory": ["objective.scoring=memory", "optim.skip_above=5", "checkpoint.best_by=heldout_loss"],
}
OF_THE_RUN = {"run.json"}  # names the output folder and how checkpoints are written


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_same_bytes_behind_the_training_and_at_once(setting, tiny_dir, tmp_path):
    """Every file of every checkpoint; the last one has no step after it, and is written at once in both runs."""
    printed = {}
    for name in ("true", "false"):
        words = [*RUN, *SETTINGS[setting], "--model", tiny_dir, "--output", tmp_path / name]
        printed[name] = launch_train(*words, f"checkpoint.async_save={name}").stdout
    assert losses_of(tmp_path / "true") == losses_of(tmp_path / "false")
    for step in (2, 4, 5):
        path = f"checkpoints/step-{step:06d}"
        behind, at_once = (read_manifest(tmp_path / name / path) for name in ("true", "false"))
        differing = {name for name, record in behind.files.items() if at_once.files[name] != record}
        assert (set(behind.files), differing) == (set(at_once.files), OF_THE_RUN)
    for name, expected in (("true", [True, True, False]), ("false", [False] * 3)):
        told = read_metrics(tmp_path / name / "metrics.jsonl", "checkpoint")
        assert [(each["step"], each["behind"]) for each in told] == list(zip((2, 4, 5), expected, strict=True))
        assert all(0 < each["stall_seconds"] <= each["seconds"] for each in told)
        assert not list((tmp_path / name / "checkpoints").glob(".writing-*"))
    if setting == "memory":
        best = [(tmp_path / name / "checkpoints" / "best").read_text().partition('"manifest"')[0] for name in printed]
        assert best[0] == best[1]


def test_what_fails_behind_the_training_is_raised_by_the_next_step(tiny_dir, tmp_path):
    """No file of more than 80 KB can be written: both ranks end with the same error, and older checkpoints stay."""
    words = [*RUN, "--model", tiny_dir, "--output", tmp_path / "run"]
    launch_train(*words, "optim.steps=3", "checkpoint.save_every=0")
    done = launch_train(
        *words, "--resume", "auto", "optim.steps=100000", "checkpoint.save_every=4", file_size=80_000, check=False
    )
    assert done.returncode
    (error,) = set(re.findall(r"^error: .*", done.stdout, re.MULTILINE))
    assert re.match(
        r"error: checkpoint .*step-000004 could not be written: rank 0: .*; rank 1: .*Older checkpoints are unt", error
    )
    assert [path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*")] == ["step-000003"]
    assert max(losses_of(tmp_path / "run")) in (5, 6)  # it was found between two steps


def test_a_checkpoint_on_its_way_outlives_a_run_that_diverges(tiny_dir, tmp_path):
    """The first update makes the weights infinite; the second step's loss ends the run, on all ranks."""
    words = [*RUN, "--model", tiny_dir, "--output", tmp_path / "run", "optim.lr=1e38", "checkpoint.save_every=1"]
    done = launch_train(*words, "optim.max_bad_steps=0", check=False)
    assert done.returncode and "step 2: loss" in done.stdout
    assert read_manifest(tmp_path / "run" / "checkpoints" / "step-000001").step == 1
    assert [path.name for path in (tmp_path / "run" / "checkpoints").glob("*-000*")] == ["step-000001"]


def test_too_little_host_memory_for_a_copy(tiny_dir, tmp_path):
    """A rank's host has 1 MiB left: that is said, and the checkpoint is written at once."""
    (tmp_path / "train.py").write_text(
        "from lift_ds.cli.train import main\nfrom lift_ds.training import checkpoint\n"
        "checkpoint.free_host_bytes = lambda: 2**20\nmain()\n"
    )
    words = latest(*RUN, "--model", tiny_dir, "--output", tmp_path / "run", "optim.steps=3")
    done = run_script(tmp_path / "train.py", *words, num_ranks=2)
    assert done.stdout.count("step 2: this checkpoint is written at once: a host has too little memory") == 1
    assert [each["behind"] for each in read_metrics(tmp_path / "run" / "metrics.jsonl", "checkpoint")] == [False] * 2


@pytest.mark.parametrize(
    ("limit", "current", "inactive", "expected"),
    [("max", 0, 0, 4096 * 1024), (str(3 << 20), 2 << 20, 1 << 19, (3 << 19)), (str(1 << 40), 0, 0, 4096 * 1024)],
)
def test_free_memory_in_a_container(tmp_path, limit, current, inactive, expected):
    """What the machine has available, or what is left of a limit, without the cache that can be dropped."""
    (tmp_path / "meminfo").write_text("MemTotal:  8192 kB\nMemAvailable:  4096 kB\n")
    (tmp_path / "memory.max").write_text(limit + "\n")
    (tmp_path / "memory.current").write_text(f"{current}\n")
    (tmp_path / "memory.stat").write_text(f"anon 5\ninactive_file {inactive}\n")
    assert row_memory.free_host_bytes(tmp_path / "meminfo", tmp_path) == expected
    assert row_memory.free_host_bytes(tmp_path / "meminfo", tmp_path / "none") == 4096 * 1024
