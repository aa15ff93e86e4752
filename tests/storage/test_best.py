"""Which checkpoint is the best, that it stays, and what a kill on the way leaves behind."""

import math
import shutil

import pytest

from lift_ds.config.training import CheckpointConfig
from lift_ds.storage import manifest
from lift_ds.storage.best import SIGNS, Measured, offer, read_best
from lift_ds.storage.manifest import find_checkpoint, pointed, remove_old
from lift_ds.storage.zero_files import follow
from tests.storage.test_manifest import make_checkpoint


def loss(value, on="rows"):
    return Measured("heldout_loss", value, on)


def save(folder, step, value, keep=1):
    """What a run does: the checkpoint, its measurement, and what is no longer kept."""
    path = make_checkpoint(folder, step)
    remove_old(folder, step, keep)
    message = offer(folder, path, loss(value))
    if message is not None:
        remove_old(folder, step, keep)
    return message


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_best_stays_beyond_the_newest(tmp_path):
    """Losses 3, 2, 4, 5: step 20 stays, though only the newest checkpoint is kept."""
    assert save(tmp_path, 10, 3.0) == "step-000010 is the best checkpoint, heldout_loss 3.0000"
    assert save(tmp_path, 20, 2.0).endswith("heldout_loss 2.0000 (before: 3.0000 at step-000010)")
    assert names(tmp_path) == ["best", "latest", "step-000020"]
    assert save(tmp_path, 30, 4.0) is None
    assert save(tmp_path, 40, 5.0) is None
    assert names(tmp_path) == ["best", "latest", "step-000020", "step-000040"]
    assert pointed(tmp_path / "best") == tmp_path / "step-000020"
    assert read_best(tmp_path).measured == loss(2.0)
    assert find_checkpoint(tmp_path, "auto")[0].name == "step-000040"
    assert find_checkpoint(tmp_path, str(tmp_path / "best"))[0].name == "step-000020"
    assert save(tmp_path, 50, 1.0) is not None
    assert names(tmp_path) == ["best", "latest", "step-000050"]


def test_a_solve_rate_is_better_when_it_is_higher_and_the_newest_of_equals_stays(tmp_path):
    for step, value in ((10, 0.25), (20, 0.5), (30, 0.5), (40, 0.0)):
        offer(tmp_path, make_checkpoint(tmp_path, step), Measured("solve_rate", value, "items"))
    assert read_best(tmp_path).name == "step-000030"


def test_every_choice_has_a_sign():
    allowed = CheckpointConfig.model_fields["best_by"].annotation.__args__
    assert set(SIGNS) == set(allowed) - {"none"}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_never_best(tmp_path, value):
    assert save(tmp_path, 10, value) is None
    assert read_best(tmp_path) is None


def test_killed_between_pointer_and_removal(tmp_path):
    """The pointer is there already, the checkpoint before it is still there too: the next removal takes that."""
    save(tmp_path, 10, 3.0)
    path = make_checkpoint(tmp_path, 20)
    assert names(tmp_path) == ["best", "latest", "step-000010", "step-000020"]
    offer(tmp_path, path, loss(2.0))  # killed here
    assert names(tmp_path) == ["best", "latest", "step-000010", "step-000020"]
    assert save(tmp_path, 30, 2.5) is None
    assert names(tmp_path) == ["best", "latest", "step-000020", "step-000030"]


def test_killed_while_the_pointer_is_written(tmp_path, monkeypatch):
    """The one before it stands, whole; measured again after the resume, the new checkpoint becomes the best."""
    save(tmp_path, 10, 3.0)
    path = make_checkpoint(tmp_path, 20)

    def killed(source, target):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(manifest.os, "replace", killed)
        offer(tmp_path, path, loss(2.0))
    assert read_best(tmp_path).name == "step-000010"
    remove_old(tmp_path, 20, 1)
    assert names(tmp_path) == [".best", "best", "latest", "step-000010", "step-000020"]
    assert offer(tmp_path, path, loss(2.0)) is not None
    remove_old(tmp_path, 20, 1)
    assert names(tmp_path) == ["best", "latest", "step-000020"]


@pytest.mark.parametrize(
    ("change", "measured", "reason"),
    [
        (lambda folder: shutil.rmtree(folder / "step-000010"), loss(9.0), "which is no longer there"),
        (lambda folder: rewrite(folder, 10), loss(9.0), "which was written anew since"),
        (lambda folder: None, loss(9.0, "other rows"), "measured on other data"),
        (lambda folder: None, Measured("solve_rate", 0.0, "items"), "step-000010 by heldout_loss"),
    ],
)
def test_values_that_do_not_compare_are_not_compared(tmp_path, change, measured, reason):
    save(tmp_path, 10, 3.0)
    change(tmp_path)
    message = offer(tmp_path, make_checkpoint(tmp_path, 20), measured)
    assert reason in message
    assert read_best(tmp_path).name == "step-000020"


def rewrite(folder, step):
    """The same step once more with other contents, as by a run that goes on from before it."""
    path = folder / f"step-{step:06d}"
    content = (path / manifest.MANIFEST).read_text()
    (path / manifest.MANIFEST).write_text(content + "\n")


def test_measured_again_it_is_no_news(tmp_path):
    path = make_checkpoint(tmp_path, 10)
    assert offer(tmp_path, path, loss(3.0)) is not None
    assert offer(tmp_path, path, loss(2.99999)) is None


@pytest.mark.parametrize("content", ["", "step-000010", "step-000010\n{}", "step-000010\n[1]", "step-000010\n{"])
def test_a_damaged_pointer_is_an_error_that_says_what_to_do(tmp_path, content):
    save(tmp_path, 10, 3.0)
    (tmp_path / "best").write_text(content)
    with pytest.raises(ValueError, match="cannot be read.*remove it"):
        read_best(tmp_path)


def test_only_pointers_are_followed(tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    save(run / "checkpoints", 10, 3.0)
    assert follow(run) == run / "checkpoints" / "step-000010"
    (tmp_path / "text").write_text("run\n")
    assert pointed(tmp_path / "text") == tmp_path / "text"
    shutil.rmtree(run / "checkpoints" / "step-000010")
    with pytest.raises(ValueError, match="best points to step-000010, which is not there"):
        pointed(run / "checkpoints" / "best")
