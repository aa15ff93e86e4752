import json
import re
import shutil

import pytest
import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import load_file, save_file

from lift_ds import load_pretrained
from lift_ds.models.families import read_config
from lift_ds.models.weights import NewWeights
from lift_ds.storage.safetensors_folder import SafetensorsFolder
from lift_ds.training.run_files import open_model


@pytest.fixture
def folder(llada_dir, tmp_path):
    for name in ("config.json", "model.safetensors"):
        shutil.copy(llada_dir / name, tmp_path / name)
    return tmp_path


def edit_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


def edit_weights(folder, change):
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


def test_sharded_folder_loads_the_same(folder, llada):
    state = load_file(folder / "model.safetensors")
    plan = split_torch_state_dict_into_shards(state, max_shard_size="40KB")
    assert len(plan.filename_to_tensors) > 2
    for name, keys in plan.filename_to_tensors.items():
        save_file({key: state[key] for key in keys}, folder / name)
    index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()
    model, _ = load_pretrained(folder)
    for one, other in zip(model.parameters(), llada.parameters(), strict=True):
        assert torch.equal(one, other)


def test_dtype(folder):
    model, tokenizer = load_pretrained(folder, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert tokenizer is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("model.transformer.ln_f.weight"), r"missing \(1\): model.transformer.ln_f.weight"),
        (lambda state: state.update(extra=torch.zeros(1)), r"unexpected \(1\): extra"),
        (
            lambda state: state.update({"model.transformer.ln_f.weight": torch.zeros(3)}),
            r"shape differs \(1\): model.transformer.ln_f.weight \(3,\) for \(48,\)",
        ),
    ],
)
def test_keys_that_do_not_fit_are_listed(folder, change, message):
    edit_weights(folder, change)
    with pytest.raises(ValueError, match=message):
        load_pretrained(folder)


def test_truncated_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match="Is it whole"):
        load_pretrained(folder)


@pytest.mark.parametrize("value", [None, 101, -1, "100"])
def test_mask_id_out_of_range(folder, value):
    edit_config(folder, mask_token_id=value)
    with pytest.raises(ValueError, match=r"mask_token_id=.*0 to 100"):
        load_pretrained(folder)


def test_mask_id_that_is_no_mask(tiny_dir, tmp_path):
    shutil.copytree(tiny_dir, tmp_path / "model")
    edit_config(tmp_path / "model", mask_token_id=7)
    source = NewWeights(read_config(tmp_path / "model"), 0)
    save_file({name: source.tensor(name) for name in source.shapes()}, tmp_path / "model" / "model.safetensors")
    with pytest.raises(ValueError, match="decodes to .* which is no mask token"):
        load_pretrained(tmp_path / "model")


def test_unknown_family(folder):
    edit_config(folder, model_type="gpt2")
    with pytest.raises(ValueError, match="model_type='gpt2' is not supported; supported: llada"):
        load_pretrained(folder)


def test_no_such_folder_or_hub_name(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match="no such folder, and fetching it as a hub name failed"):
        load_pretrained("nobody/nothing")


def test_a_hub_name_goes_through_the_same_code(folder, monkeypatch):
    monkeypatch.setattr("lift_ds.models.weights.snapshot_download", lambda name, allow_patterns: str(folder))
    model, _ = load_pretrained("somebody/llada")
    assert model.config.d_model == 48


def test_new_weights_are_keyed(llada_dir):
    config = read_config(llada_dir)
    name = "model.transformer.wte.weight"
    one, same, other = (NewWeights(config, seed).tensor(name) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert one.std().item() == pytest.approx(config.init_std, rel=0.05)


def test_shapes_come_from_headers(folder):
    assert SafetensorsFolder(folder).shapes()["model.transformer.wte.weight"] == (101, 48)


@pytest.mark.parametrize(
    ("change", "lines"),
    [
        ({"vocab_size": 300, "embedding_size": 300}, [r"embedding_size.*: 300 by config.json, \d+ in the weights"]),
        ({"n_layers": 3}, [r"layers: 3 by config.json, 2 in the weights"]),
        ({"mlp_hidden_size": 96}, [r"mlp_hidden_size: 96 by config.json, \d+ in the weights"]),
    ],
)
def test_a_config_of_another_size_is_said_in_its_own_words(llada_dir, tmp_path, change, lines):
    """Before anything of the weights is read, with both numbers, wherever a model folder is opened."""
    folder = shutil.copytree(llada_dir, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    assert set(change) <= set(config)
    (folder / "config.json").write_text(json.dumps(config | change))
    for opened in (load_pretrained, lambda path: open_model(str(path)).fetch_weights()):
        with pytest.raises(ValueError, match="the weights do not fit the model's config") as error:
            opened(folder)
        for line in lines:
            assert re.search(line, str(error.value)), str(error.value)
