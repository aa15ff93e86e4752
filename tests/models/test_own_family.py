"""A family from outside the package, registered with one line, goes wherever the built-in ones go."""

import dataclasses
import json
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from lift_ds import generate, load_pretrained, sft_loss
from lift_ds.export.folder import export_folder
from lift_ds.models.families import FAMILIES, max_length_of, read_config, register, start_token_of
from lift_ds.models.llada_llama import LLaDALlamaConfig, LLaDALlamaModelLM
from lift_ds.models.lora import add_adapters
from lift_ds.models.weights import NewWeights
from tests.conftest import run
from tests.models.own_family import FAMILY, OwnConfig

FIELDS = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 50,
}  # fmt: skip
IDS = torch.tensor([[5, 6, 7, 8, 9, 10]])


@pytest.fixture
def folder(tmp_path):
    """A folder of the family: config and weights under its own names, no ids of control tokens."""
    register(FAMILY)
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(FIELDS | {"model_type": "own", "context": 32}))
    source = NewWeights(OwnConfig(**FIELDS), 0)
    save_file({name: source.tensor(name) for name in source.shapes()}, folder / "model.safetensors")
    yield folder
    FAMILIES.pop("own", None)


def test_it_is_loaded_once_it_is_registered(folder):
    del FAMILIES["own"]
    with pytest.raises(ValueError, match="model_type='own' is not supported; supported: llada, Dream"):
        load_pretrained(folder)
    register(FAMILY)
    model, tokenizer = load_pretrained(folder)
    assert (type(model), tokenizer) == (FAMILY.model_class, None)
    assert (model.config.mask_token_id, model.config.eos_token_id, model.config.pad_token_id) == (49, 1, 2)
    assert (max_length_of(model.config), start_token_of(model.config)) == (32, None)


def test_its_logits_are_those_of_the_same_weights_under_llamas_names(folder):
    same = LLaDALlamaModelLM(LLaDALlamaConfig(**FIELDS)).eval()
    llamas_names = {"body": "model", "readout": "lm_head"}
    for name, tensor in load_file(folder / "model.safetensors").items():
        first, rest = name.split(".", 1)
        same.get_parameter(f"{llamas_names[first]}.{rest}").data = tensor
    model, _ = load_pretrained(folder)
    assert torch.equal(model(input_ids=IDS).logits, same(input_ids=IDS).logits)


def test_it_learns_and_answers(folder):
    """With new weights the loss is about log 50 = 3.912 a token; SGD on the same masks brings it down."""
    model, _ = load_pretrained(folder)
    kept = torch.tensor([[False, False, True, True, True, True]])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    losses = []
    for _ in range(5):
        loss = sft_loss(model.train(), IDS, kept, torch.ones(1), num_targets=4)
        optimizer.zero_grad()
        loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(3.912, abs=0.1)
    assert losses == sorted(losses, reverse=True)
    assert generate(model.eval(), IDS[:, :2], steps=4, gen_length=4, block_length=4).shape == (1, 6)


def test_adapters_leave_its_head_out(folder):
    model, _ = load_pretrained(folder)
    with pytest.raises(ValueError, match="readout not in the model; it has down_proj"):
        add_adapters(model, 2, 4.0, 0.0, ["readout"], 0)


def test_its_export_loads_without_lift_ds(folder, tmp_path):
    export_folder(load_file(folder / "model.safetensors"), folder, tmp_path / "out", torch.float32)
    (path,) = (tmp_path / "out").glob("*.py")
    assert path.name == "modeling_own_family.py"
    assert "Family" not in path.read_text() and "import lift_ds" not in path.read_text()
    code = (
        "import sys, torch, transformers\n"
        "sys.modules['lift_ds'] = None\n"
        f"model = transformers.AutoModel.from_pretrained({str(tmp_path / 'out')!r}, trust_remote_code=True).eval()\n"
        f"torch.save(model(input_ids=torch.tensor({IDS.tolist()})).logits, 'logits.pt')\n"
    )
    environment = {"PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    run([sys.executable, "-c", code], cwd=tmp_path, env=environment)
    expected = load_pretrained(folder)[0](input_ids=IDS).logits
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), expected, atol=1e-6, rtol=1e-6)


def test_a_taken_name_is_refused(folder):
    register(FAMILY)  # the same row again changes nothing
    with pytest.raises(ValueError, match=r"'own' \(OwnConfig\): 'own' \(OwnConfig\) is registered"):
        register(dataclasses.replace(FAMILY, head="lm_head"))
    with pytest.raises(ValueError, match=r"'Own' \(OwnConfig\): 'own' \(OwnConfig\) is registered"):
        register(dataclasses.replace(FAMILY, name="Own"))


def test_a_registered_family_is_no_longer_refused_as_a_relative(tmp_path):
    """SDAR-MoE is a known relative without a file; a row for it comes first."""
    (tmp_path / "config.json").write_text(json.dumps(FIELDS | {"model_type": "sdar_moe"}))
    with pytest.raises(ValueError, match="SDAR-MoE: mixtures of experts with SDAR's layers"):
        read_config(tmp_path)

    class SDARMoEConfig(OwnConfig):
        model_type = "sdar_moe"
        __init__ = OwnConfig.__init__  # transformers 5 writes one for every config class that has none of its own

    class SDARMoEModel(FAMILY.model_class):
        config_class = SDARMoEConfig

    register(dataclasses.replace(FAMILY, name="sdar_moe", config_class=SDARMoEConfig, model_class=SDARMoEModel))
    try:
        assert isinstance(read_config(tmp_path), SDARMoEConfig)
    finally:
        del FAMILIES["sdar_moe"]
