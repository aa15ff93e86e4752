import json
import shutil
import subprocess
import venv

import pytest
import torch
from safetensors.torch import load_file

from lift_ds import load_pretrained
from lift_ds.models.export import ExportOptions, InMemory, export_folder, export_tensors
from lift_ds.models.lora import merge_adapters


@pytest.fixture
def state(llada_dir):
    return load_file(llada_dir / "model.safetensors")


def test_round_trip(state, llada_dir, llada, tmp_path):
    export_folder(state, llada_dir, tmp_path / "out", torch.float32)
    model, _ = load_pretrained(tmp_path / "out")
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(model(input_ids=ids).logits, llada(input_ids=ids).logits)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    original = json.loads((llada_dir / "config.json").read_text())
    changed = {key for key in config if config[key] != original.get(key)}
    assert changed <= {"auto_map", "architectures"}
    assert set(original) <= set(config)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()} == {0o644}


def test_shards(state, llada_dir, tmp_path):
    tensors = {name: InMemory(tensor) for name, tensor in state.items()}
    export_tensors(tensors, llada_dir, tmp_path / "out", ExportOptions(torch.float32, max_shard_bytes=40_000))
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 2
    model, _ = load_pretrained(tmp_path / "out")
    assert all(torch.equal(model.get_parameter(name), tensor) for name, tensor in state.items())


def test_dtype(state, llada_dir, tmp_path):
    export_folder(state, llada_dir, tmp_path / "out", torch.bfloat16)
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in written.values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_nothing_is_overwritten_and_nothing_half_written(state, llada_dir, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty"):
        export_folder(state, llada_dir, tmp_path / "out", torch.float32)
    incomplete = {name: tensor for name, tensor in state.items() if "ln_f" not in name}
    with pytest.raises(ValueError, match="missing"):
        export_folder(incomplete, llada_dir, tmp_path / "other", torch.float32)
    assert not (tmp_path / "other").exists()


def test_merged_adapters():
    # W + (alpha / rank) B A = [[1, 2]] + 8/2 * [[3]] [[0.5, 0]] = [[7, 2]]
    state = {
        "q_proj.base_layer.weight": torch.tensor([[1.0, 2.0]]),
        "q_proj.lora_A.default.weight": torch.tensor([[0.5, 0.0]]),
        "q_proj.lora_B.default.weight": torch.tensor([[3.0]]),
        "other.weight": torch.ones(1),
    }
    merged = merge_adapters(state, rank=2, alpha=8.0)
    assert merged["q_proj.weight"].tolist() == [[7.0, 2.0]]
    assert set(merged) == {"q_proj.weight", "other.weight"}


@pytest.mark.slow
def test_transformers_4_loads_an_export(state, llada_dir, tmp_path, llada):
    """A clean environment with transformers 4, without lift_ds, gives the same logits."""
    folder = tmp_path / "out"
    export_folder(state, llada_dir, folder, torch.float32)
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    packages = [f"torch=={torch.__version__.split('+')[0]}", "transformers==4.57.1", "numpy"]
    subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
    ids = torch.tensor([[5, 6, 7, 8]])
    code = f"""
import torch, transformers
assert transformers.__version__.startswith("4.")
from transformers import AutoModel
model = AutoModel.from_pretrained({str(folder)!r}, trust_remote_code=True).eval()
torch.save(model(input_ids=torch.tensor({ids.tolist()})).logits, {str(tmp_path / "logits.pt")!r})
"""
    environment = {"PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    subprocess.run([python, "-c", code], check=True, cwd=tmp_path, env=environment)
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), llada(input_ids=ids).logits, atol=1e-6, rtol=1e-6)
    shutil.rmtree(tmp_path / "venv")
