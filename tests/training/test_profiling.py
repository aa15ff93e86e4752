"""Profiles of some steps: which are in the trace, and what a run says where there is none."""

import gzip
import json
from types import SimpleNamespace

import pytest
import torch

from lift_ds.config.loading import load_run_config
from lift_ds.ranks.watchdog import Activity
from lift_ds.training.profiling import StepProfile
from lift_ds.training.timing import StepClock

RANKS = SimpleNamespace(device=torch.device("cpu"), communication_seconds=0.0, activity=Activity())


def take_steps(profiled, steps):
    for step in steps:
        profiled.before(step)
        with StepClock(RANKS).part("forward"):
            torch.ones(step, 4).sum()
        profiled.after(step)
    profiled.close()


def read_forwards(path):
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    return [event for event in events if event.get("name") == "forward" and event.get("ph") == "X"]


@pytest.mark.parametrize(
    ("wanted", "steps", "name", "num_taken"),
    [
        ((2, 3), range(1, 6), "steps-000002-000003.json.gz", 2),
        ((2, 9), range(1, 5), "steps-000002-000004.json.gz", 3),  # stopped after step 4
        ((2, 6), range(5, 9), "steps-000005-000006.json.gz", 2),  # resumed after step 4
    ],
    ids=["all", "stopped", "resumed"],
)
def test_the_trace_has_the_steps_that_are_taken(tmp_path, wanted, steps, name, num_taken):
    said = []
    take_steps(StepProfile(wanted, tmp_path, said.append), steps)
    assert [path.name for path in (tmp_path / "profile").iterdir()] == [name]
    assert len(read_forwards(tmp_path / "profile" / name)) == num_taken
    assert said == [f"profile of rank 0: {tmp_path / 'profile' / name}"]


def test_without_a_profile(tmp_path):
    said = []
    take_steps(StepProfile(None, tmp_path, said.append), range(1, 4))
    assert said == []
    take_steps(StepProfile((2, 3), tmp_path, said.append), range(4, 6))
    assert said == ["no profile: steps 2 to 3 were not taken since this start of the run"]
    assert list(tmp_path.iterdir()) == []


def test_a_trace_that_cannot_be_written_ends_no_run(tmp_path):
    (tmp_path / "profile").write_text("in the way")
    said = []
    take_steps(StepProfile((1, 1), tmp_path, said.append), [1])
    assert len(said) == 1
    assert said[0].startswith(f"no profile: {tmp_path / 'profile'}/steps-000001-000001.json.gz cannot be written: ")


@pytest.mark.parametrize("steps", ["12-10", "0-3", "ten", "3", "1-2-3"])
def test_steps_that_are_none(steps):
    _, problems = load_run_config(None, [f"model.profile_steps='{steps}'"])
    assert problems == [f"model.profile_steps={steps}: write FIRST-LAST, steps from 1 on, for example 10-12"]


def test_steps_after_the_last():
    _, problems = load_run_config(None, ["model.profile_steps=5-7", "optim.steps=6"])
    assert problems == ["model.profile_steps=5-7: the run ends after step 6; name earlier steps, or raise optim.steps"]
    assert load_run_config(None, ["model.profile_steps=5-6", "optim.steps=6"])[1] == []
