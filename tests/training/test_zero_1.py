"""Whole runs under ZeRO-1, which in bf16 with float32 gradients has an optimizer and a checkpoint layout of its own."""

import json

import pytest

from lift_ds.cli import inspect_checkpoint, zero_to_hf
from tests.conftest import REPOSITORY, SMALL, launch_train, losses_of

pytestmark = pytest.mark.distributed


def train(folder, tiny_dir, name, has_bf16, *more, num_ranks=2):
    loaded = json.loads((REPOSITORY / "ds_configs" / "zero2.json").read_text()) | {"bf16": {"enabled": has_bf16}}
    loaded["zero_optimization"]["stage"] = 1
    (folder / "zero1.json").write_text(json.dumps(loaded))
    command = [*SMALL, "--deepspeed", folder / "zero1.json", "--model", tiny_dir, "--output", folder / name]
    return launch_train(*command, "eval.rows=0", "eval.solve_items=0", *more, num_ranks=num_ranks).stdout


@pytest.mark.parametrize("has_bf16", [pytest.param(False, marks=pytest.mark.slow), True], ids=["float32", "bf16"])
def test_train_save_resume_export(tiny_dir, tmp_path, has_bf16):
    """Resumed on 2 ranks the steps are bit-equal, on 1 rank (slow) equal but for rounding; exports hold the masters."""
    printed = train(tmp_path, tiny_dir, "run", has_bf16)
    assert f"2 ranks, ZeRO-1, {'bf16' if has_bf16 else 'float32'}" in printed
    expected = losses_of(tmp_path / "run")
    assert expected[6][0] < expected[1][0]
    saved = tmp_path / "run" / "checkpoints" / "step-000003"
    train(tmp_path, tiny_dir, "again", has_bf16, f"checkpoint.resume={saved}")
    assert losses_of(tmp_path / "again") == {step: values for step, values in expected.items() if step > 3}
    zero_to_hf.main([str(saved), str(tmp_path / "model"), "--dtype", "float32", "--verify"])
    inspect_checkpoint.main([str(saved), "--json", str(tmp_path / "facts.json")])
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert (facts["zero_stage"], facts["world_size"], facts["is_whole"]) == (1, 2, True)
    if not has_bf16:
        train(tmp_path, tiny_dir, "alone", has_bf16, f"checkpoint.resume={saved}", num_ranks=1)
        alone = losses_of(tmp_path / "alone")
        assert sorted(alone) == [4, 5, 6]
        assert all(loss == pytest.approx(expected[step][0], rel=1e-6) for step, (loss, _) in alone.items())
