"""Looking into checkpoints, averaging them, and cutting them anew, without DeepSpeed."""

import json
import math
import sys

import pytest
import torch
from safetensors.torch import load_file

from lift_ds.cli import average_checkpoints, inspect_checkpoint, reshard
from tests.conftest import run
from tests.export.shards import Content, odd_content, write_shards


def content(*values, step=1):
    return Content(groups=[{"a": torch.tensor(values)}], step=step)


def inspect(tmp_path, *arguments):
    """Facts, and the exit code."""
    try:
        inspect_checkpoint.main([*map(str, arguments), "--json", str(tmp_path / "facts.json")])
        code = 0
    except SystemExit as stopped:
        code = stopped.code
    return json.loads((tmp_path / "facts.json").read_text()), code


def test_inspect_a_whole_checkpoint(tmp_path):
    folder = write_shards(tmp_path / "run", content(3.0, -4.0), 3, 2)
    facts, code = inspect(tmp_path, folder, "--moments")
    assert code == 0
    assert (facts["step"], facts["world_size"], facts["zero_stage"], facts["num_trained"]) == (1, 2, 3, 2)
    # weights 3, -4; exp_avg 1.5, -2; exp_avg_sq 9, 16: 25 + 6.25 + 337
    assert facts["norm"] == pytest.approx(math.sqrt(368.25))
    assert facts["largest"] == 16
    assert facts["is_whole"] is True


def test_inspect_finds_nan_and_damage(tmp_path):
    folder = write_shards(tmp_path / "run", content(3.0, float("nan"), float("inf")), 2, 2)
    facts, code = inspect(tmp_path, folder)
    assert code == 1
    assert (facts["num_not_finite"], facts["not_finite_in"], facts["norm"]) == (2, "a", 3.0)
    path = folder / "global_step1" / "mp_rank_00_model_states.pt"
    damaged = path.read_bytes().replace(torch.tensor([3.0]).bfloat16().view(torch.uint8).numpy().tobytes(), b"\1\1", 1)
    path.write_bytes(damaged)
    facts, _ = inspect(tmp_path, folder)
    assert "mp_rank_00_model_states.pt has changed (checksum)" in facts["problems"]


def test_two_checkpoints(tmp_path):
    """(3, 4) and (3, 5): the difference has norm 1, the first norm 5."""
    first = write_shards(tmp_path / "first", content(3.0, 4.0), 3, 2)
    second = write_shards(tmp_path / "second", content(3.0, 5.0, step=2), 2, 3)
    facts, _ = inspect(tmp_path, first, second)
    assert facts["differs a"] == pytest.approx(0.2)
    assert (facts["num_equal"], facts["num_changed"], facts["other_step"]) == (0, 1, 2)
    assert inspect(tmp_path, first, first)[0]["num_equal"] == 1
    facts, code = inspect(tmp_path, first, "--dry-run")
    assert code == 0
    assert "norm" not in facts


def test_average(tmp_path, capsys):
    first = write_shards(tmp_path / "first", content(3.0, 4.0), 3, 2)
    second = write_shards(tmp_path / "second", content(5.0, 0.0, step=2), 2, 3)
    flags = ["--weights-only", "--dtype", "float32", "--verify"]
    average_checkpoints.main([str(first), str(second), str(tmp_path / "out"), *flags])
    assert load_file(tmp_path / "out" / "model.safetensors")["a"].tolist() == [4.0, 2.0]
    other = write_shards(tmp_path / "other", odd_content(), 3, 2)
    for arguments, message in (([first, other], "its tensors are not those of"), ([first], "at least two")):
        with pytest.raises(SystemExit):
            average_checkpoints.main([*map(str, arguments), str(tmp_path / "new"), *flags])
        assert message in capsys.readouterr().err


def test_tools_do_not_import_deepspeed(tmp_path):
    folder = str(write_shards(tmp_path / "run", odd_content(), 3, 2))
    code = "import sys; from lift_ds.cli import inspect_checkpoint, reshard, average_checkpoints as average\n"
    code += f"inspect_checkpoint.main([{folder!r}])\n"
    code += f"average.main([{folder!r}, {folder!r}, {str(tmp_path / 'out')!r}, '--weights-only'])\n"
    code += f"reshard.main([{folder!r}, '3', {str(tmp_path / 'three')!r}])\n"
    code += "assert not {'deepspeed', 'transformers'} & set(sys.modules)"
    run([sys.executable, "-c", code])


def same(ours, theirs):
    """Whether two loaded files hold the same, tensor by tensor."""
    if torch.is_tensor(theirs):
        return torch.is_tensor(ours) and ours.dtype == theirs.dtype and torch.equal(ours, theirs)
    if isinstance(theirs, dict):
        return list(ours) == list(theirs) and all(same(ours[key], theirs[key]) for key in theirs)
    if isinstance(theirs, (list, tuple)):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    return type(ours) is type(theirs) and str(getattr(theirs, "__dict__", theirs)) == str(
        getattr(ours, "__dict__", ours)
    )


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 3), (3, 2), (2, 8)])
@pytest.mark.parametrize("stage", [2, 3])
def test_reshard_writes_what_those_ranks_would_have(tmp_path, stage, before, after):
    """Loaded by torch, every file is what was written for that world size, filling and paddings included."""
    made = odd_content(alignment=8 if stage == 2 else 1)
    folder = write_shards(tmp_path / "run", made, stage, before)
    reshard.main([str(folder), str(after), str(tmp_path / "out")])
    expected = write_shards(tmp_path / "expected", made, stage, after)
    names = sorted(path.name for path in (expected / "global_step7").iterdir())
    assert sorted(path.name for path in (tmp_path / "out" / "global_step7").iterdir()) == names
    for name in names:
        ours, theirs = (
            torch.load(root / "global_step7" / name, weights_only=False) for root in (tmp_path / "out", expected)
        )
        for group in ours.get("optimizer_state_dict", {}).pop("param_slice_mappings", []):
            assert all(fragment.numel > 0 for fragment in group.values())
        assert same(ours, theirs), name
        assert not num_shared(ours.get("optimizer_state_dict")), name  # AdamW counts steps in place


def num_shared(tree):
    """Tensors that lie in the memory of another one."""
    places = [tensor.data_ptr() for tensor in tensors_of(tree) if tensor.numel()]
    return len(places) - len(set(places))


def tensors_of(tree):
    if torch.is_tensor(tree):
        return [tree]
    values = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, (list, tuple)) else ()
    return [tensor for value in values for tensor in tensors_of(value)]
