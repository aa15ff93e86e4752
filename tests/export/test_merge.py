"""The streamed merge against peft's own, and adapters that cannot be merged."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from lift_ds import load_pretrained
from lift_ds.export import folder as exporting
from lift_ds.export import merge as merging
from lift_ds.export.merge import plan_merge, write_merged
from lift_ds.export.peft_folder import AdapterFolder
from lift_ds.models.lora import add_adapters, peft_config, save_adapters, split_adapters
from lift_ds.storage import staging

PLAIN = {"target_modules": ["q_proj", "v_proj", "down_proj"]}
RECIPES = {
    "plain": PLAIN,
    "rslora": PLAIN | {"use_rslora": True},
    "patterns": PLAIN
    | {"rank_pattern": {"down_proj": 2, r"layers\.1\.self_attn\.q_proj": 6}, "alpha_pattern": {"v_proj": 32}},
    "patterns with rslora": PLAIN | {"rank_pattern": {"v_proj": 3}, "use_rslora": True},
    "all": {"target_modules": "all-linear"},
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A plain Llama with its own files, float32."""
    folder = tmp_path_factory.mktemp("llama") / "base"
    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "intermediate_size": 80, "num_attention_heads": 4, "num_key_value_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=99, num_hidden_layers=2, **sizes)).save_pretrained(folder)
    (folder / "vocabulary.txt").write_text("theirs")
    (folder / "remote_code.py").write_text("# theirs")
    (folder / "pytorch_model.bin").write_text("the same weights, pickled")
    return folder


def make_adapters(base, folder, **config):
    """Random adapters, B not 0, as peft saves them."""
    torch.manual_seed(1)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=4, lora_alpha=10, **config))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def adapters(llama, tmp_path):
    return make_adapters(llama, tmp_path / "adapters", **PLAIN)


def merge(base, adapters, output, dtype=None):
    advanced = []
    plan = plan_merge(base, adapters, dtype)
    write_merged(plan, output, dtype, advanced.append)
    assert sum(advanced) == plan.num_bytes
    return output


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_float32_is_bit_equal_to_pefts_own_merge(llama, tmp_path, recipe):
    adapters = make_adapters(llama, tmp_path / "adapters", **RECIPES[recipe])
    merged = load_file(merge(llama, adapters, tmp_path / "out") / "model.safetensors")
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llama), adapters).merge_and_unload()
    base, expected = load_file(llama / "model.safetensors"), theirs.state_dict()
    assert merged.keys() == base.keys()
    for name, tensor in merged.items():
        assert torch.equal(tensor, expected[name]), name
    changed = {name for name in merged if not torch.equal(merged[name], base[name])}
    assert changed == set(AdapterFolder(adapters).targets)


def test_bf16_is_the_float32_merge_rounded_once(llama, adapters, tmp_path):
    full = load_file(merge(llama, adapters, tmp_path / "full") / "model.safetensors")
    half = load_file(merge(llama, adapters, tmp_path / "half", torch.bfloat16) / "model.safetensors")
    assert all(torch.equal(half[name], full[name].bfloat16()) for name in full)
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"


def test_a_strangers_files_come_along_as_they_are(llama, adapters, tmp_path, monkeypatch):
    """In several files, too: the folder loads with transformers."""
    whole = load_file(merge(llama, adapters, tmp_path / "whole") / "model.safetensors")
    monkeypatch.setattr(merging, "MAX_SHARD_BYTES", 40_000)
    monkeypatch.setattr(exporting, "CHUNK_ELEMENTS", 1000)
    output = merge(llama, adapters, tmp_path / "out")
    assert len(list(output.glob("model-*.safetensors"))) > 1
    for path in llama.iterdir():
        if path.suffix in (".json", ".txt", ".py"):
            assert (output / path.name).read_bytes() == path.read_bytes()
    assert not (output / "pytorch_model.bin").exists()
    loaded = AutoModelForCausalLM.from_pretrained(output).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in whole.items())
    assert {path.stat().st_mode & 0o777 for path in output.iterdir()} == {0o644}


def test_a_model_of_ours_gets_our_modelling_file(llada_dir, tmp_path):
    """Adapters of a model in training, split, written and merged, give its logits; peft gives them too."""
    model, _ = load_pretrained(llada_dir)
    add_adapters(model, 4, 8.0, 0.05, ["q_proj", "ff_out"], seed=3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.uniform_(-0.1, 0.1)
    base, adapters = split_adapters(model.state_dict())
    untouched = load_file(llada_dir / "model.safetensors")
    assert base.keys() == untouched.keys() and all(torch.equal(base[name], untouched[name]) for name in base)
    save_adapters(adapters, tmp_path / "adapters", peft_config(4, 8.0, 0.05, ["q_proj", "ff_out"]))
    assert "base_model.model.model.transformer.blocks.0.q_proj.lora_A.weight" in adapters
    ids = torch.tensor([[5, 6, 7]])
    expected = model.eval()(input_ids=ids).logits
    merged, _ = load_pretrained(merge(llada_dir, tmp_path / "adapters", tmp_path / "out"))
    torch.testing.assert_close(merged(input_ids=ids).logits, expected, rtol=1e-5, atol=1e-5)
    adapted = PeftModel.from_pretrained(load_pretrained(llada_dir)[0], tmp_path / "adapters").eval()
    assert torch.equal(adapted(input_ids=ids).logits, expected)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["auto_map"]["AutoModel"] == "modeling_llada.LLaDAModelLM"
    assert (tmp_path / "out" / "modeling_llada.py").is_file()


def edit_config(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder, change):
    path = folder / "adapter_model.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_dora": True}, "use_dora=True cannot be merged tensor by tensor; use peft's own merge_and_unload"),
        ({"bias": "all", "modules_to_save": ["lm_head"]}, r"bias='all', modules_to_save=\['lm_head'\] cannot"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' cannot"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out=True cannot"),
        ({"some_key_of_tomorrow": 3}, "some_key_of_tomorrow=3 cannot"),
        ({"peft_type": "IA3"}, "peft_type='IA3' cannot be merged; allowed: 'LORA'"),
        ({"r": 0}, "no config of an adapter"),
        ({"r": 5}, r"down_proj: A \(4, 80\) and B \(48, 4\) are no pair of rank 5"),
    ],
)
def test_what_is_not_merged_is_named(llama, adapters, changes, message):
    edit_config(adapters, **changes)
    with pytest.raises(ValueError, match=message):
        plan_merge(llama, adapters, None)


Q_PROJ = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop(f"{Q_PROJ}.lora_B.weight"), rf"half an adapter: {Q_PROJ}.lora_B.weight"),
        (lambda state: state.clear(), "half an adapter: it is empty"),
        (
            lambda state: state.update({f"{Q_PROJ}.lora_B.weight": torch.zeros(50, 4)}),
            r"another base: shapes differ .*: model.layers.0.self_attn.q_proj.weight \(50, 48\) for \(48, 48\)",
        ),
        (
            lambda state: state.update({f"{Q_PROJ}x.lora_{end}.weight": torch.zeros(4, 4) for end in "AB"}),
            r"is of another base: .* has no model.layers.0.self_attn.q_projx.weight",
        ),
        (
            lambda state: state.update({"base_model.model.lm_head.weight": torch.zeros(2)}),
            "base_model.model.lm_head.weight: only A and B of linear layers can be merged",
        ),
    ],
)
def test_adapters_that_do_not_fit(llama, adapters, change, message):
    edit_weights(adapters, change)
    with pytest.raises(ValueError, match=message):
        plan_merge(llama, adapters, None)


def test_files_that_are_missing_or_broken(llama, adapters, tmp_path):
    weights = adapters / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-8])
    with pytest.raises(ValueError, match=r"adapter_model.safetensors: no readable safetensors file.*Is it whole"):
        plan_merge(llama, adapters, None)
    weights.rename(adapters / "adapter_model.bin")
    with pytest.raises(ValueError, match="adapter_model.safetensors is missing; adapters are read from safetensors"):
        plan_merge(llama, adapters, None)
    (adapters / "adapter_config.json").unlink()
    with pytest.raises(ValueError, match=r"adapter_config.json is missing; a folder that peft"):
        plan_merge(llama, adapters, None)
    shutil.copytree(llama, tmp_path / "bare")
    (tmp_path / "bare" / "config.json").unlink()
    with pytest.raises(ValueError, match=r"bare: no config.json; a model folder"):
        plan_merge(tmp_path / "bare", make_adapters(llama, tmp_path / "again", **PLAIN), None)


def test_nothing_is_overwritten_and_a_full_disk_is_seen_first(llama, adapters, tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(ValueError, match="exists and is not empty"):
        merge(llama, adapters, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]
    monkeypatch.setattr(staging, "SPARE_BYTES", 2**60)
    with pytest.raises(RuntimeError, match=r"GiB free, 1073741824.00 GiB needed"):
        merge(llama, adapters, tmp_path / "new" / "deep")
    assert not (tmp_path / "new").exists()
