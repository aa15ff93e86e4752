"""A new run that starts from another run's checkpoint: its weights, and nothing else of it."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

from lift_ds.cli import zero_to_hf
from lift_ds.models.weights import load_pretrained
from lift_ds.storage.checkpoint_weights import CheckpointWeights, checkpoint_at
from tests.conftest import SMALL, launch_train, read_steps

pytestmark = pytest.mark.distributed
SETTINGS = ["model.from_scratch=false", "eval.solve_items=0", "optim.lr=1e-3", "checkpoint.best_by=heldout_loss"]


@pytest.fixture(scope="module", params=["ds_configs/zero3.json", "ds_configs/zero2.json"])
def begun(request, tiny_dir, tmp_path_factory):
    """A run of six steps on two ranks, saved after three."""
    output = tmp_path_factory.mktemp("begun") / "run"
    settings = [*SETTINGS, "model.from_scratch=true", "--deepspeed", request.param]
    launch_train(*SMALL, *settings, "--model", tiny_dir, "--output", output)
    return output


def test_weights_are_the_export(begun):
    """Whole and by ranges, of every parameter."""
    weights = CheckpointWeights(checkpoint_at(str(begun / "checkpoints" / "latest")))
    exported = load_file(begun / "export" / "model.safetensors")
    assert {name: tuple(shape) for name, shape in weights.shapes().items()} == {
        name: tuple(tensor.shape) for name, tensor in exported.items()
    }
    for name, tensor in exported.items():
        whole, part = torch.empty(tensor.numel()), torch.empty(7)
        weights.read(name, whole)
        assert torch.equal(whole, tensor.flatten())
        weights.read(name, part, start=11)
        assert torch.equal(part, tensor.flatten()[11:18])


def test_a_new_run_starts_from_a_checkpoint(begun, tmp_path):
    """As from the export of the same step: on one rank and two, from `best` as from the folder; then resumed."""
    checkpoint = begun / "checkpoints" / "best"
    named = checkpoint_at(str(checkpoint))
    zero_to_hf.main([str(named), str(tmp_path / "export")])
    found = {}
    for label, model, ranks in (("folder", tmp_path / "export", 2), ("pointer", checkpoint, 2), ("alone", named, 1)):
        output = tmp_path / label
        printed = launch_train(*SMALL, *SETTINGS, "--model", model, "--output", output, num_ranks=ranks).stdout
        found[label] = {step["step"]: (step["loss"], step["grad_norm"]) for step in read_steps(output)}
        said = f"weights of {named}, step {int(named.name[5:])}; the optimizer is new, and the data begin anew"
        assert (said in printed) == (label != "folder")
    assert list(found["pointer"]) == [1, 2, 3, 4, 5, 6]
    assert found["pointer"] == found["folder"]
    for step, values in found["folder"].items():
        assert found["alone"][step] == pytest.approx(values, rel=1e-4)
    resumed = [*SMALL, *SETTINGS, "--model", checkpoint, "--output", tmp_path / "resumed"]
    launch_train(*resumed, "--resume", tmp_path / "pointer" / "checkpoints" / "step-000003")
    again = {step["step"]: (step["loss"], step["grad_norm"]) for step in read_steps(tmp_path / "resumed")}
    assert again == {step: found["pointer"][step] for step in (4, 5, 6)}
    assert load_pretrained(tmp_path / "resumed" / "export")[1] is not None


def refusal(tmp_path, model, *settings):
    done = launch_train(*SMALL, *SETTINGS, *settings, "--model", model, "--output", tmp_path / "run", check=False)
    assert done.returncode == 2
    assert not list((tmp_path / "run").glob("checkpoints/*"))
    return done.stdout


def test_what_cannot_start_a_run(begun, tmp_path):
    saved = begun / "checkpoints" / "step-000003"
    assert f"python tools/zero_to_hf.py {saved} FOLDER" in refusal(tmp_path, saved, "lora.rank=2")
    cut, flipped = (tmp_path / name for name in ("cut", "flipped"))
    for folder in (cut, flipped):
        shutil.copytree(saved, folder)
    shards = sorted((cut / "zero").glob("*optim_states.pt"))
    shards[0].write_bytes(shards[0].read_bytes()[:-9])
    assert f"{cut}: not whole: " in refusal(tmp_path, cut)
    shard = sorted((flipped / "zero").glob("*optim_states.pt"))[0]
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    assert f"model.path={flipped}: not whole: " in refusal(tmp_path, flipped)


def test_adapters_alone_start_no_run(begun, tmp_path):
    lora = tmp_path / "lora"
    launch_train(*SMALL, *SETTINGS, "--model", begun / "export", "--output", lora, "lora.rank=2", "optim.steps=3")
    message = refusal(tmp_path, lora / "checkpoints" / "latest")
    assert "holds adapters only; write their weights into the base's with `python tools/zero_to_hf.py" in message
