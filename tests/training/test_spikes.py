"""Steps with a gradient far larger than those before: what they are compared with, also after a resume."""

import json
import math

import pytest

from lift_ds.training.spikes import FEWEST, NORMS_FILE, WINDOW, Spikes
from tests.conftest import SMALL, launch_train, read_steps


def test_the_limit_is_a_multiple_of_the_median():
    spikes = Spikes(3.0)
    for norm in range(FEWEST - 1):
        assert spikes.limit == math.inf
        spikes.note(norm)
    for bad in (math.nan, math.inf):
        spikes.note(bad)
    assert spikes.limit == math.inf
    spikes.note(1e9)
    assert spikes.limit == 3 * (FEWEST - 1) / 2
    for _ in range(WINDOW // 2 + 1):
        spikes.note(1e3)
    assert spikes.limit == 3e3  # large ones are what is usual now
    never = Spikes(None)
    never.norms.extend(spikes.norms)
    assert never.limit == math.inf


def test_norms_are_kept_where_they_are_needed(tmp_path):
    spikes, never = Spikes(2.0), Spikes(None)
    spikes.norms.extend([0.1] * FEWEST)
    never.save(tmp_path)
    assert not list(tmp_path.iterdir()) and never.load(tmp_path) and not Spikes(2.0).load(tmp_path)
    spikes.save(tmp_path)
    again = Spikes(2.0)
    assert again.load(tmp_path) and again.norms == spikes.norms and again.limit == 0.2


@pytest.mark.distributed
def test_a_resumed_run_leaves_out_the_same_steps(tmp_path, tiny_dir):
    settings = ["--model", tiny_dir, "optim.skip_above=1.02", "optim.steps=24", "optim.lr=1e-4", "eval.rows=0"]
    settings += ["eval.solve_items=0", "checkpoint.save_every=20", "optim.global_batch=2"]
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    printed = launch_train(*SMALL, *settings, "--output", straight).stdout
    steps = read_steps(straight)
    left_out = {step["step"]: step["norm_limit"] for step in steps if "norm_limit" in step}
    assert min(left_out) > FEWEST and any(step > 20 for step in left_out) and len(left_out) < 24 - FEWEST
    for step in left_out:
        assert f"step {step}: left out, gradient norm " in printed
    saved = straight / "checkpoints" / "step-000020"
    assert len(json.loads((saved / NORMS_FILE).read_text())) == 20
    launch_train(*SMALL, *settings, "--output", resumed, "--resume", saved)
    again = {step["step"]: (step["loss"], step["grad_norm"], step.get("norm_limit")) for step in read_steps(resumed)}
    expected = {step["step"]: (step["loss"], step["grad_norm"], step.get("norm_limit")) for step in steps}
    assert again == {step: values for step, values in expected.items() if step > 20}
