"""Conversion of ZeRO checkpoints: bit-equal to DeepSpeed's script, whole or not at all, without DeepSpeed."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from deepspeed.utils.zero_to_fp32 import convert_zero_checkpoint_to_fp32_state_dict
from safetensors.torch import load_file

from lift_ds.cli.tool import parse_size
from lift_ds.cli.zero_to_hf import main
from lift_ds.export.convert import ConversionOptions, prepare_conversion
from lift_ds.export.names import official_names
from lift_ds.storage.staging import staged_folder
from tests.conftest import REPOSITORY, clean_environment, run, run_script
from tests.export.shards import Content, odd_content, write_shards

WEIGHTS_ONLY = ConversionOptions(dtype="float32", weights_only=True, max_shard_bytes=500)


def load_folder(folder):
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


@pytest.mark.parametrize(("stage", "world"), [(2, 3), (3, 8)])
def test_equals_the_files_of_zero_to_fp32(tmp_path, stage, world):
    folder = write_shards(tmp_path / "run", odd_content(shared={}), stage, world)
    convert_zero_checkpoint_to_fp32_state_dict(str(folder), str(tmp_path / "theirs"), "1KB", safe_serialization=True)
    prepare_conversion(folder, WEIGHTS_ONLY).write(tmp_path / "ours")
    ours, theirs = load_folder(tmp_path / "ours"), load_folder(tmp_path / "theirs")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name].float(), theirs[name].float()) for name in theirs)
    assert ours["counts"].dtype == torch.int64
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "ours").iterdir()} == {0o644}
    index = json.loads((tmp_path / "ours" / "model.safetensors.index.json").read_text())["weight_map"]
    assert all(name in load_file(tmp_path / "ours" / file) for name, file in index.items())


def test_tied_tensors_are_under_both_names_where_the_model_is_not_known(tmp_path):
    prepare_conversion(write_shards(tmp_path / "run", odd_content(), 3, 2), WEIGHTS_ONLY).write(tmp_path / "out")
    found = load_folder(tmp_path / "out")
    assert torch.equal(found["head.weight"], found["embed.weight"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_types(tmp_path, dtype):
    content = odd_content()
    options = ConversionOptions(dtype=str(dtype).removeprefix("torch."), weights_only=True)
    prepare_conversion(write_shards(tmp_path / "run", content, 3, 3), options).write(tmp_path / "out")
    found = load_folder(tmp_path / "out")
    assert torch.equal(found["embed.weight"], content.groups[0]["embed.weight"].to(dtype))
    assert torch.equal(found["counts"], content.buffers["counts"])
    auto = prepare_conversion(tmp_path / "run", ConversionOptions(weights_only=True))
    assert auto.dtype == "bfloat16"  # what the run computed in


def hf_folder(path, **config):
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps({"model_type": "gpt_neo", "dtype": "float32"} | config))
    (path / "tokenizer.json").write_text("{}")
    (path / "trainer_state.json").write_text("{}")
    (path / "modeling.py").write_text("")
    return path


def test_a_strangers_checkpoint_with_its_config_beside(tmp_path):
    """As Hugging Face's Trainer leaves it: checkpoint-7/{config.json, tokenizer.json, latest, global_step7}."""
    folder = write_shards(hf_folder(tmp_path / "checkpoint-7"), odd_content(), 2, 2)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# The Trainer's\n")
    prepare_conversion(folder, ConversionOptions()).write(tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"config.json", "tokenizer.json", "model.safetensors", "README.md"}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config == {"model_type": "gpt_neo", "torch_dtype": "bfloat16"}
    card = (tmp_path / "out" / "README.md").read_text()
    assert "license: apache-2.0\n" in card and "The Trainer's" not in card


def test_code_and_config_from_elsewhere(tmp_path):
    folder = write_shards(tmp_path / "run", odd_content(), 3, 2)
    with pytest.raises(ValueError, match=r"no config.json.*--config.*--weights-only"):
        prepare_conversion(folder, ConversionOptions())
    config = hf_folder(tmp_path / "base", auto_map={"AutoModel": "modeling.Model"})
    prepare_conversion(folder, ConversionOptions(config=config)).write(tmp_path / "out")
    assert (tmp_path / "out" / "modeling.py").is_file()  # its config needs it


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embedding_size": 77, "vocab_size": 77, "mask_token_id": 5, "eos_token_id": 6, "pad_token_id": 6}, "wte"),
        ({"n_layers": 3}, r"missing \(9\): model.transformer.blocks.2"),
        ({"mask_token_id": 101}, "mask_token_id=101"),
    ],
    ids=["vocabulary", "layers", "mask"],
)
def test_a_config_of_another_size(tmp_path, llada_dir, change, message):
    config = json.loads((llada_dir / "config.json").read_text())
    convert_llada(tmp_path, llada_dir, config)
    with pytest.raises(ValueError, match=message):
        convert_llada(tmp_path, llada_dir, config | change)
    assert not (tmp_path / "out").exists()


def test_a_config_of_another_family(tmp_path, llada_dir, dream_dir):
    with pytest.raises(ValueError, match="model.embed_tokens.weight"):
        convert_llada(tmp_path, llada_dir, json.loads((dream_dir / "config.json").read_text()))
    assert not (tmp_path / "out").exists()


def convert_llada(folder, llada_dir, config):
    """Shards of the reference model, converted with some config; where that works the result is removed again."""
    content = Content(groups=[load_file(llada_dir / "model.safetensors")])
    (folder / "config").mkdir(exist_ok=True)
    (folder / "config" / "config.json").write_text(json.dumps(config))
    shards = folder / "run" if (folder / "run").is_dir() else write_shards(folder / "run", content, 3, 2)
    prepare_conversion(shards, ConversionOptions(config=folder / "config")).write(folder / "out")
    shutil.rmtree(folder / "out")


def test_names():
    wrapped = ["module._orig_mod.model.a", "module._orig_mod.model.b"]
    assert list(official_names(wrapped, None, None).values()) == ["model.a", "model.b"]
    assert list(official_names(wrapped, None, {"a", "b"}).values()) == ["a", "b"]
    assert list(official_names(wrapped, None, {"model.a"}).values()) == ["model.a", "model.b"]
    assert list(official_names(wrapped, "module.model.", None).values()) == ["a", "b"]
    assert list(official_names(["module.a", "b"], None, None).values()) == ["module.a", "b"]
    with pytest.raises(ValueError, match="b and 0 other names do not begin"):
        official_names(["module.a", "b"], "module.", None)
    with pytest.raises(ValueError, match="two tensors are called a"):
        official_names(["_orig_mod.a", "a"], None, None)


def lora_content():
    """q = [[1, 2], [3, 4]], A = [[0.5, 0]], B = [[3], [1]]: q + 8/1 * B A = [[13, 2], [7, 4]]."""
    prefix = "base_model.model.layers.0.q"
    return Content(
        groups=[
            {f"{prefix}.lora_A.default.weight": torch.tensor([[0.5, 0.0]])},
            {f"{prefix}.lora_B.default.weight": torch.tensor([[3.0], [1.0]])},
        ],
        frozen={f"{prefix}.base_layer.weight": torch.tensor([[1.0, 2.0], [3.0, 4.0]])},
    )


@pytest.mark.parametrize("stage", [2, 3])
def test_adapters_are_merged(tmp_path, stage):
    folder = write_shards(hf_folder(tmp_path / "run"), lora_content(), stage, 2)
    with pytest.raises(ValueError, match="rank and alpha are not known"):
        prepare_conversion(folder, ConversionOptions())
    adapter_config = {"r": 1, "lora_alpha": 8, "peft_type": "LORA", "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(adapter_config))
    prepare_conversion(folder, ConversionOptions(dtype="float32")).write(tmp_path / "out")
    assert {name: each.tolist() for name, each in load_folder(tmp_path / "out").items()} == {
        "layers.0.q.weight": [[13.0, 2.0], [7.0, 4.0]]
    }
    (folder / "adapter_config.json").write_text(json.dumps(adapter_config | {"use_dora": True}))
    with pytest.raises(ValueError, match="use_dora=True cannot be merged"):
        prepare_conversion(folder, ConversionOptions())


def test_a_flipped_bit_leaves_no_folder(tmp_path):
    folder = write_shards(tmp_path / "run", odd_content(), 3, 2)
    path = folder / "global_step7" / "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt"
    storage = prepare_conversion(folder, WEIGHTS_ONLY).zero.flat_groups(1, "master")[0].storage
    content = bytearray(path.read_bytes())
    content[storage.offset + 5] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="rank_1.* has changed"):
        prepare_conversion(folder, WEIGHTS_ONLY).write(tmp_path / "out")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["run"]


def test_a_killed_conversion_leaves_nothing_and_the_next_one_cleans_up(tmp_path):
    code = f"""
import os, signal
from pathlib import Path
from lift_ds.export.convert import ConversionOptions, prepare_conversion
conversion = prepare_conversion(Path({str(tmp_path / "run")!r}), ConversionOptions(weights_only=True))
conversion.write(Path({str(tmp_path / "out")!r}), lambda elements: os.kill(os.getpid(), signal.SIGKILL))
"""
    write_shards(tmp_path / "run", odd_content(), 3, 2)
    done = subprocess.run([sys.executable, "-c", code], env=clean_environment(), cwd=REPOSITORY, check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    assert len(list(tmp_path.glob(".writing-out-*"))) == 1
    prepare_conversion(tmp_path / "run", WEIGHTS_ONLY).write(tmp_path / "out")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["out", "run"]


def test_two_writers_of_one_folder(tmp_path):
    """The first to finish has the folder; the second says so and leaves nothing; neither disturbs the other."""
    with pytest.raises(ValueError, match="something else wrote it meanwhile"), staged_folder(tmp_path / "out") as slow:
        (slow / "file").write_text("slow")
        script = "from lift_ds.storage.staging import *; import sys\n"
        script += "with staged_folder(Path(sys.argv[1])) as fast: (fast / 'file').write_text('fast')"
        run([sys.executable, "-c", script, str(tmp_path / "out")])
    assert (tmp_path / "out" / "file").read_text() == "fast"
    assert [each.name for each in tmp_path.iterdir()] == ["out"]


def test_a_place_that_cannot_be_written(tmp_path, monkeypatch):
    write_shards(tmp_path / "run", odd_content(), 3, 2)
    command = ["tools/zero_to_hf.py", tmp_path / "run", tmp_path / "out", "--weights-only"]
    done = run_script(*command, check=False, file_size=100)
    assert done.returncode == 2
    assert "out could not be written" in done.stdout
    assert not (tmp_path / "out").exists()
    conversion = prepare_conversion(tmp_path / "run", WEIGHTS_ONLY)
    with pytest.raises(RuntimeError, match="^/proc.* (written|needed)"):
        conversion.write(Path("/proc/out"))  # nobody can make a folder there
    monkeypatch.setattr("lift_ds.storage.staging.shutil.disk_usage", lambda path: type("Usage", (), {"free": 99}))
    with pytest.raises(RuntimeError, match="0.00 GiB free, 0.03 GiB needed"):
        conversion.write(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_line(tmp_path, capsys):
    folder = write_shards(tmp_path / "run", odd_content(), 3, 2)
    flags = [str(folder), str(tmp_path / "out"), "--weights-only", "--json", str(tmp_path / "summary.json")]
    main([*flags, "--dry-run", "--max-shard-size", "0.4KB"])
    summary = json.loads((tmp_path / "summary.json").read_text())
    # 13*7 + 7*7 + 11*7 + 7 + 1 trained, 5*3 + 3 frozen, 4 + 6 buffers, and embed (91) again as head
    assert summary["num_parameters"] == 225 + 18 + 10 + 91
    assert summary["num_files"] > 1
    assert not (tmp_path / "out").exists()
    main([*flags, "--verify"])
    assert json.loads((tmp_path / "summary.json").read_text())["num_verified_tensors"] == 10
    for bad, message in (
        (["--max-shard-size", "big"], "'big' is no size"),
        (["--config", "nowhere"], "no such folder"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main([*flags, *bad])
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err


def test_sizes():
    assert (parse_size("200MB"), parse_size("1.5 GB"), parse_size("2kb")) == (200_000_000, 1_500_000_000, 2000)


def test_deepspeed_and_transformers_are_not_imported(tmp_path):
    write_shards(tmp_path / "run", odd_content(), 3, 2)
    code = "import sys; from lift_ds.cli.zero_to_hf import main; main(sys.argv[1:]);"
    code += "assert not {'deepspeed', 'transformers'} & set(sys.modules)"
    run([sys.executable, "-c", code, str(tmp_path / "run"), str(tmp_path / "out"), "--weights-only"])
