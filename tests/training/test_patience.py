"""A run ends early once its held-out loss has not improved for a while, also when it was stopped in between."""

import math

import pytest

from lift_ds.config.loading import load_run_config
from lift_ds.training.patience import Patience
from tests.conftest import SMALL, launch_train, read_steps


def test_measurements_without_an_improvement():
    patience = Patience(2)
    losses = [3.0, 2.0, 2.0, 1.9, math.nan, 2.5, 1.0]
    since, bests = [0, 0, 1, 0, 1, 2, 0], [3.0, 2.0, 2.0, 1.9, 1.9, 1.9, 1.0]
    for step, (loss, num_since, best) in enumerate(zip(losses, since, bests, strict=True)):
        patience.note(step, loss)
        assert (patience.num_since, patience.best, patience.is_over) == (num_since, best, num_since == 2), step
    patience.note(6, 9.0)
    patience.note(6, 9.0)  # once more, of a run that goes on: it counts once
    assert (patience.best, patience.num_since) == (1.0, 0)
    patience.note(7, 5.0, "other rows")
    assert (patience.best, patience.num_since) == (5.0, 0)
    endless = Patience(0)
    for step in range(9):
        endless.note(step, 1.0)
    assert not endless.is_over


def test_what_is_kept(tmp_path):
    endless, patience = Patience(0), Patience(3)
    endless.save(tmp_path)
    assert not list(tmp_path.iterdir()) and endless.load(tmp_path) and not patience.load(tmp_path)
    for losses in ([], [2.0, 3.0]):
        for step, loss in enumerate(losses):
            patience.note(step, loss)
        patience.save(tmp_path)
        again = Patience(3)
        assert again.load(tmp_path) and vars(again) == vars(patience)


@pytest.mark.parametrize("key", ["eval.every", "eval.rows"])
def test_it_needs_held_out_losses(key):
    (problem,) = load_run_config(None, ["eval.patience=2", f"{key}=0"], {})[1]
    assert f"eval.patience=2: needs held-out losses, and {key}=0 turns them off" in problem


@pytest.mark.distributed
def test_a_run_that_does_not_improve_ends(tmp_path, tiny_dir):
    """Nothing changes at this learning rate: of 40 steps 4 are taken, on two ranks, with or without a stop between."""
    settings = ["--model", tiny_dir, "optim.steps=40", "optim.lr=1e-30", "optim.weight_decay=0", "eval.every=2"]
    settings += ["eval.patience=2", "eval.solve_items=0", "checkpoint.save_every=3", "checkpoint.best_by=heldout_loss"]
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    printed = launch_train(*SMALL, *settings, "--output", straight).stdout
    assert "none of the last 2 held-out losses was below" in printed and "eval.patience=2 ends the run" in printed
    assert [step["step"] for step in read_steps(straight)] == [1, 2, 3, 4]
    assert (straight / "export" / "model.safetensors").exists()
    launch_train(*SMALL, *settings, "--output", resumed, "--resume", straight / "checkpoints" / "step-000003")
    assert [step["step"] for step in read_steps(resumed)] == [4]
    launch_train(*SMALL, *settings, "--output", straight, "--resume", "auto")
    assert [step["step"] for step in read_steps(straight)] == [1, 2, 3, 4]
