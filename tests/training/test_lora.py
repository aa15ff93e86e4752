"""Whole runs with adapters: their dropout, their checkpoints, PEFT's format."""

import json
import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from lift_ds import load_pretrained
from lift_ds.cli import inspect_checkpoint, zero_to_hf
from lift_ds.export.convert import ConversionOptions, prepare_conversion
from lift_ds.models.families import read_config
from lift_ds.models.weights import NewWeights
from lift_ds.storage.zero_checkpoint import open_zero_checkpoint
from tests.conftest import SMALL, launch_train, losses_of

pytestmark = pytest.mark.distributed


def test_lora(tiny_dir, tmp_path):
    """Adapters with dropout under ZeRO-3: the base stays, resuming is bit-equal, the export is merged."""
    base = tmp_path / "base"
    launch_train(*SMALL, "--model", tiny_dir, "--output", tmp_path / "made", "optim.steps=1", num_ranks=1)
    shutil.move(tmp_path / "made" / "export", base)
    lora = [*SMALL, "--model", base, "model.from_scratch=false", "lora.rank=4", "lora.alpha=8", "lora.dropout=0.2"]
    lora += ["model.gradient_checkpointing=true", "eval.solve_items=0"]
    whole = launch_train(*lora, "--output", tmp_path / "whole")
    difference = float(whole.stdout.split("logits from the trained model's: ")[1].split()[0])
    assert difference < 1e-5
    launch_train(*lora, "--output", tmp_path / "half", "optim.steps=3")
    launch_train(*lora, "--output", tmp_path / "half", "--resume", "auto")
    assert losses_of(tmp_path / "half") == losses_of(tmp_path / "whole")
    before, after = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "whole" / "export"))
    changed = {name.split(".")[-2] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"q_proj", "k_proj", "v_proj"}
    assert_peft_loads(base, tmp_path / "whole")
    assert_goes_on_alone(lora, tmp_path)
    assert_checkpoint_needs_its_base(base, tmp_path)
    other = launch_train(*lora, "--output", tmp_path / "half", "--resume", "auto", num_ranks=1, check=False)
    assert "holds adapters of the base" in other.stdout and "model.safetensors differ" in other.stdout
    unknown = launch_train(*lora, "lora.targets=[wrong]", "--output", tmp_path / "new", num_ranks=1, check=False)
    assert "lora.targets: wrong not in the model" in unknown.stdout


def assert_goes_on_alone(lora, folder):
    """From step 3, on one rank under ZeRO-2: the same losses, dropout included, and a report of what is saved."""
    saved, output = folder / "whole" / "checkpoints" / "step-000003", folder / "alone"
    command = [*lora, "--deepspeed", "ds_configs/zero2.json", "--output", output, f"checkpoint.resume={saved}"]
    launch_train(*command, num_ranks=1)
    expected = losses_of(folder / "whole")
    for step, (loss, norm) in losses_of(output).items():
        assert loss == pytest.approx(expected[step][0], rel=1e-5)
        assert norm == pytest.approx(expected[step][1], rel=1e-4)
    inspect_checkpoint.main([str(saved), "--json", str(folder / "inspected.json")])
    assert json.loads((folder / "inspected.json").read_text())["world_size"] == 2


def assert_checkpoint_needs_its_base(base, folder):
    """It holds adapters only; the base is found where it was, or where it is said to be, and no other is taken."""
    checkpoint = folder / "half" / "checkpoints" / "step-000006"
    assert all(".lora_" in name for name in open_zero_checkpoint(checkpoint / "zero").weights())
    zero_to_hf.main([str(folder / "half"), str(folder / "split"), "--lora", "split"])
    first, second = (load_file(folder / each / "adapter_model.safetensors") for each in ("whole/adapters", "split"))
    assert first and all(torch.equal(first[name], second[name]) for name in first)
    moved = shutil.copytree(base, folder / "moved")
    flip_last_byte(base / "model.safetensors")
    with pytest.raises(ValueError, match=r"holds adapters of the base .*model.safetensors differ"):
        prepare_conversion(checkpoint, ConversionOptions())
    prepare_conversion(checkpoint, ConversionOptions(base=moved)).write(folder / "again")
    first, second = (load_file(each / "model.safetensors") for each in (folder / "whole" / "export", folder / "again"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    shutil.move(base, folder / "gone")
    with pytest.raises(ValueError, match="their base, is not there; name it with --base"):
        prepare_conversion(checkpoint, ConversionOptions())
    shutil.move(folder / "gone", base)


def flip_last_byte(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def assert_peft_loads(base, output):
    """peft puts `adapters/` onto the base and gives the logits of `export/`, which are those of the trained model."""
    ids = torch.tensor([[5, 6, 7, 8]])
    adapted = PeftModel.from_pretrained(load_pretrained(base)[0], output / "adapters").eval()
    (expected, _), (before, _) = (load_pretrained(folder) for folder in (output / "export", base))
    with torch.no_grad():
        logits, theirs = adapted(input_ids=ids).logits, expected(input_ids=ids).logits
        assert (logits - theirs).abs().max() < 1e-5 * theirs.abs().max()
        assert (logits - before(input_ids=ids).logits).abs().max() > 1e-3 * theirs.abs().max()
    config = json.loads((output / "adapters" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base)
    assert {path.stat().st_mode & 0o777 for path in (output / "adapters").iterdir()} == {0o644}


def test_lora_on_other_matrices_under_zero_2(tiny_dir, tmp_path):
    """Packed, with adapters on all matrices of a block; the vocabulary matrix, `ff_out` too, has none."""
    base = tmp_path / "base"
    shutil.copytree(tiny_dir, base)
    new = NewWeights(read_config(base), 0)
    save_file({name: new.tensor(name) for name in new.shapes()}, base / "model.safetensors")
    command = [*SMALL, "--deepspeed", "ds_configs/zero2.json", "--model", base, "model.from_scratch=false"]
    command += [
        "lora.rank=128",
        "lora.alpha=256",
        "lora.targets=[q_proj,k_proj,v_proj,attn_out,ff_proj,up_proj,ff_out]",
    ]
    command += ["eval.solve_items=0", "data.packing=best_fit", "data.pad_targets=one_eos", "data.pad_to_multiple=1"]
    launch_train(*command, "--output", tmp_path / "run")
    assert_peft_loads(base, tmp_path / "run")
    adapters = load_file(tmp_path / "run" / "adapters" / "adapter_model.safetensors")
    assert len(adapters) == 2 * 7 * 2  # two blocks, seven matrices, A and B
    assert not [name for name in adapters if "transformer.ff_out" in name]
