"""`model.compile`: the same run, its layers compiled."""

import pytest

from tests.conftest import SMALL, launch_train, losses_of

CHECKPOINTED = {"none": [], "half": ["model.checkpoint_layers=1"], "all": ["model.gradient_checkpointing=true"]}
pytestmark = [pytest.mark.distributed, pytest.mark.slow]  # a compilation takes half a minute


@pytest.mark.parametrize("more", CHECKPOINTED.values(), ids=CHECKPOINTED)
def test_losses_are_those_of_eager_layers(tiny_dir, tmp_path, more):
    """Two ZeRO-3 ranks, layers as leaf modules, documents of any length, evaluation and sampling between."""
    command = [*SMALL, *more, "--model", tiny_dir, "data.pad_to_multiple=1", "data.pad_targets=one_eos", "eval.every=3"]
    launch_train(*command, "--output", tmp_path / "eager")
    launch_train(*command, "--output", tmp_path / "compiled", "model.compile=true")
    expected = losses_of(tmp_path / "eager")
    assert expected[6][0] < expected[1][0]
    for step, (loss, norm) in losses_of(tmp_path / "compiled").items():
        assert loss == pytest.approx(expected[step][0], rel=1e-6)
        assert norm == pytest.approx(expected[step][1], rel=1e-5)
