"""Checkpoints that Hugging Face's Trainer and Accelerate really wrote, on two ranks: converted, inspected, cut anew."""

import json

import pytest
import torch
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from lift_ds import load_pretrained
from lift_ds.cli import average_checkpoints, inspect_checkpoint, reshard, zero_to_hf
from lift_ds.export.folder import export_folder
from lift_ds.models.families import read_config
from lift_ds.models.weights import NewWeights
from tests.conftest import clean_environment, free_port, run
from tests.small_models import write_causal

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def models(tiny_dir, tmp_path_factory):
    """Folders of a Llama with a tied head, a Qwen2 with biases, and an export of LLaDA's architecture."""
    folder = tmp_path_factory.mktemp("models")
    for kind in ("llama", "qwen2"):
        write_causal(folder / kind, kind)
    source = NewWeights(read_config(tiny_dir), 0)
    export_folder({name: source.tensor(name) for name in source.shapes()}, tiny_dir, folder / "llada", torch.float32)
    return folder


def ds_json(stage, has_bf16=False, **zero):
    if stage == 3:
        zero = {"stage3_param_persistence_threshold": 0} | zero
    sizes = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    return dict.fromkeys(sizes, "auto") | {
        "gradient_clipping": 1.0,
        "bf16": {"enabled": has_bf16},
        "zero_optimization": {"stage": stage, **zero},
    }


def launch(folder, *plans, num_ranks=2):
    """Trains, all in one launch; `strangers.make` says what a plan holds."""
    path = folder / f"plan-{free_port()}.json"
    path.write_text(json.dumps(plans, default=str))
    command = ["deepspeed", "--num_gpus", str(num_ranks), "--master_port", str(free_port())]
    run([*command, "tests/export/strangers.py", str(path)], env=clean_environment(HF_HOME=str(folder / "hf")))


def tensors_of(folder):
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def assert_converts(checkpoint, output, *flags):
    """Bit-equal to DeepSpeed's own script in float32; transformers loads it whole."""
    zero_to_hf.main([str(checkpoint), str(output), "--dtype", "float32", "--verify", *flags])
    expected = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint))
    found = tensors_of(output)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    if "auto_map" in json.loads((output / "config.json").read_text()):
        model, tokenizer = load_pretrained(output)
        assert tokenizer is not None
    else:
        model, report = AutoModelForCausalLM.from_pretrained(output, output_loading_info=True)
        assert not any(report.values()), report
    state = model.state_dict()
    assert all(torch.equal(state[name], found[name]) for name in found)


def assert_inspects(checkpoint, facts_path, **expected):
    """`inspect_checkpoint.py` finds it whole and finite."""
    inspect_checkpoint.main([str(checkpoint), "--moments", "--json", str(facts_path)])
    facts = json.loads(facts_path.read_text())
    assert {"is_whole": True, "num_not_finite": 0, "step": 2} | expected == {
        key: facts[key] for key in {"is_whole", "num_not_finite", "step", *expected}
    }


def assert_adapters(checkpoint, base, output):
    """Merged they are what peft merges, alone what the Trainer saved: rounded to bfloat16, before rounding."""
    zero_to_hf.main([str(checkpoint), str(output / "merged"), "--dtype", "float32", "--verify"])
    zero_to_hf.main([str(checkpoint), str(output / "split"), "--lora", "split"])
    saved, split = (load_file(each / "adapter_model.safetensors") for each in (checkpoint, output / "split"))
    assert saved.keys() == split.keys()
    assert all(torch.equal(saved[name], split[name].to(saved[name].dtype)) for name in saved)
    assert all(split[name].any() for name in split)  # B began as 0
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), output / "split")
    expected, merged = adapted.merge_and_unload().state_dict(), tensors_of(output / "merged")
    assert all(torch.equal(merged[name], expected[name]) for name in merged)
    AutoModelForCausalLM.from_pretrained(output / "merged")


@pytest.mark.slow
def test_trainer(models, tmp_path, capsys):
    """ZeRO-2 in float32 with LLaDA's architecture; ZeRO-3 in bfloat16 with adapters, whose base is not saved."""
    launch(
        tmp_path,
        {"program": "trainer", "model": models / "llada", "output": tmp_path / "whole", "ds": ds_json(2)},
        {
            "program": "trainer",
            "model": models / "llama",
            "output": tmp_path / "lora",
            "ds": ds_json(3, has_bf16=True),
            "lora_rank": 4,
        },
    )
    whole, lora = (tmp_path / name / "checkpoint-2" for name in ("whole", "lora"))
    assert_converts(whole, tmp_path / "out")
    assert_inspects(whole, tmp_path / "facts.json", zero_stage=2, num_frozen=0)
    average_checkpoints.main([str(whole), str(whole), str(tmp_path / "mean"), "--dtype", "float32", "--verify"])
    first, second = tensors_of(tmp_path / "out"), tensors_of(tmp_path / "mean")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert_adapters(lora, models / "llama", tmp_path)
    # 2 layers of q (32 to 32) and v (32 to 16), rank 4: 2 x (4 x 64 + 4 x 48)
    assert_inspects(lora, tmp_path / "facts.json", zero_stage=3, num_trained=896, num_frozen=0)
    config = json.loads((lora / "adapter_config.json").read_text())
    (lora / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "owner/model"}))
    with pytest.raises(SystemExit):
        zero_to_hf.main([str(lora), str(tmp_path / "new")])
    assert "owner/model, their base, is no folder here; name the base's folder with --base" in capsys.readouterr().err
    zero_to_hf.main([str(lora), str(tmp_path / "new"), "--dtype", "float32", "--base", str(models / "llama")])
    assert_same_files(tmp_path / "merged", tmp_path / "new")


def assert_same_files(first, second):
    one, other = tensors_of(first), tensors_of(second)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def losses(output):
    history = json.loads((output / "checkpoint-4" / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_trainer_resumes_from_what_reshard_wrote(models, tmp_path, stage):
    """Steps 3 and 4 on 1 and 4 ranks have the losses of two ranks that never stopped; each step has four rows."""
    common = {"program": "trainer", "model": models / "llama", "ds": ds_json(stage), "steps": 4}
    launch(tmp_path, common | {"output": tmp_path / "two"})
    expected = losses(tmp_path / "two")
    assert len(expected) == 4 and abs(expected[3] - expected[0]) > 0.1
    for ranks in (1, 4):
        output = tmp_path / str(ranks)
        checkpoint = output / "checkpoint-2"
        reshard.main([str(tmp_path / "two" / "checkpoint-2"), str(ranks), str(checkpoint)])
        assert_inspects(checkpoint, tmp_path / "facts.json", world_size=ranks, zero_stage=stage)
        plan = common | {"output": output, "batch": 4 // ranks, "resume": checkpoint}
        launch(tmp_path, plan, num_ranks=ranks)
        assert losses(output) == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
def test_zero_1_in_bf16(models, tmp_path):
    """DeepSpeed's own script refuses this layout; the Trainer saved the model too, rounded to bfloat16."""
    common = {"program": "trainer", "model": models / "qwen2", "steps": 4}
    common["ds"] = ds_json(1, has_bf16=True) | {"data_types": {"grad_accum_dtype": "fp32"}}
    launch(tmp_path, common | {"output": tmp_path / "two"})
    checkpoint = tmp_path / "two" / "checkpoint-2"
    with pytest.raises(ValueError, match="is not a zero checkpoint"):
        get_fp32_state_dict_from_zero_checkpoint(str(checkpoint))
    zero_to_hf.main([str(checkpoint), str(tmp_path / "out"), "--dtype", "bfloat16", "--verify"])
    found, saved = tensors_of(tmp_path / "out"), load_file(checkpoint / "model.safetensors")
    assert found.keys() == saved.keys()
    assert all(torch.equal(found[name], saved[name].bfloat16()) for name in found)
    resumed = tmp_path / "one" / "checkpoint-2"
    reshard.main([str(checkpoint), "1", str(resumed)])
    launch(tmp_path, common | {"output": tmp_path / "one", "batch": 4, "resume": resumed}, num_ranks=1)
    assert losses(tmp_path / "one") == pytest.approx(losses(tmp_path / "two"), rel=1e-3)


@pytest.mark.slow
def test_every_kind(models, tmp_path):
    """Stages, types, DeepSpeed's own Adam, offloading, sub-groups; Accelerate's folders, which hold no config."""
    adam = {"optimizer": {"type": "AdamW", "params": {"lr": "auto", "weight_decay": "auto"}}}
    offload = {"offload_optimizer": {"device": "cpu"}}
    kinds = {
        "one": ("trainer", "qwen2", ds_json(1)),
        "two": ("trainer", "llama", ds_json(2, has_bf16=True)),
        "two-offload": ("trainer", "llama", ds_json(2, has_bf16=True, **offload) | adam),
        "three": ("trainer", "llada", ds_json(3)),
        "three-bf16": ("trainer", "qwen2", ds_json(3, has_bf16=True)),
        "three-adam": ("trainer", "llada", ds_json(3, has_bf16=True) | adam),
        "three-groups": ("trainer", "llama", ds_json(3, sub_group_size=1000, **offload)),
        "accelerate-one": ("accelerate", "llama", ds_json(1)),
        "accelerate-two": ("accelerate", "llama", ds_json(2, has_bf16=True)),
        "accelerate-three": ("accelerate", "llada", ds_json(3)),
    }
    plans = [
        {"program": program, "model": models / model, "output": tmp_path / name, "ds": ds}
        for name, (program, model, ds) in kinds.items()
    ]
    launch(tmp_path, *plans)
    for name, (program, model, ds) in kinds.items():
        checkpoint = tmp_path / name if program == "accelerate" else tmp_path / name / "checkpoint-2"
        flags = ["--config", str(models / model)] if program == "accelerate" else []
        assert_converts(checkpoint, tmp_path / f"{name}-out", *flags)
        assert_inspects(checkpoint, tmp_path / "facts.json", zero_stage=ds["zero_optimization"]["stage"])
        reshard.main([str(checkpoint), "3", str(tmp_path / f"{name}-of-3")])
        recut = str(tmp_path / f"{name}-of-3")
        zero_to_hf.main([recut, str(tmp_path / f"{name}-again"), "--dtype", "float32", *flags])
        assert_same_files(tmp_path / f"{name}-out", tmp_path / f"{name}-again")


@pytest.mark.slow
def test_adapters_of_every_kind(models, tmp_path):
    """Under ZeRO-2; and of Accelerate, whose checkpoints hold the base but not PEFT's config."""
    plans = {
        "two": {"program": "trainer", "ds": ds_json(2)},
        "accelerate": {"program": "accelerate", "ds": ds_json(3, has_bf16=True)},
    }
    common = {"model": models / "llama", "lora_rank": 4}
    launch(tmp_path, *(common | plan | {"output": tmp_path / name} for name, plan in plans.items()))
    trained = tmp_path / "two" / "checkpoint-2"
    assert_adapters(trained, models / "llama", tmp_path / "out")
    held = tmp_path / "accelerate"
    for file in ("adapter_config.json", "config.json"):
        folder = trained if file.startswith("adapter") else models / "llama"
        (held / file).write_text((folder / file).read_text())
    zero_to_hf.main([str(held), str(tmp_path / "held"), "--dtype", "float32", "--verify"])
    zero_to_hf.main([str(held), str(tmp_path / "held-split"), "--lora", "split"])
    base = AutoModelForCausalLM.from_pretrained(models / "llama", dtype=torch.bfloat16).float()
    expected = PeftModel.from_pretrained(base, tmp_path / "held-split").merge_and_unload().state_dict()
    found = tensors_of(tmp_path / "held")
    assert all(torch.equal(found[name], expected[name]) for name in found)
