"""A model folder whose weight files contradict each other is refused; what clearly does not count is said."""

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lift_ds.export.peft_folder import AdapterFolder
from lift_ds.models.vocabulary import load_tokenizer
from lift_ds.models.weights import load_pretrained
from lift_ds.storage import safetensors_folder
from lift_ds.storage.safetensors_file import INDEX_FILE, SINGLE_FILE
from lift_ds.storage.safetensors_folder import SafetensorsFolder
from lift_ds.storage.torch_file import open_torch_file

SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


def make_state(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {"a": torch.randn(70, 50, generator=generator), "b": torch.randn(3, generator=generator)}


def write_shards(folder, state, names=SHARDS):
    for (key, tensor), name in zip(state.items(), names, strict=True):
        save_file({key: tensor}, folder / name)
    weight_map = dict(zip(state, names, strict=True))
    (folder / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def halves(state, dtype=torch.float16):
    return {key: tensor.to(dtype) for key, tensor in state.items()}


def write_sharded_bin(folder, state):
    for number, (key, tensor) in enumerate(state.items(), start=1):
        torch.save({key: tensor}, folder / f"pytorch_model-0000{number}-of-00002.bin")


OTHERS = {
    "pytorch_model.bin": lambda folder, state: torch.save(state, folder / "pytorch_model.bin"),
    "pytorch_model-00001-of-00002.bin": write_sharded_bin,
    "model.fp16.safetensors": lambda folder, state: save_file(halves(state), folder / "model.fp16.safetensors"),
    "model.bf16.safetensors": lambda folder, state: save_file(
        halves(state, torch.bfloat16), folder / "model.bf16.safetensors"
    ),
    "model-00001-of-00003.safetensors": lambda folder, state: save_file(
        {"a": state["a"]}, folder / "model-00001-of-00003.safetensors"
    ),
}


def said_of(folder):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        read = SafetensorsFolder(folder)
    return read, [str(warning.message) for warning in caught]


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("is_sampled", [False, True])
def test_beside_a_single_file(tmp_path, name, is_sampled, monkeypatch):
    if is_sampled:  # the first tensor counts as a large one
        monkeypatch.setattr(safetensors_folder, "SAMPLE_ELEMENTS", 500)
    state = make_state()
    save_file(state, tmp_path / SINGLE_FILE)
    OTHERS[name](tmp_path, state)
    read, [said] = said_of(tmp_path)
    assert read.tensor("a").equal(state["a"])
    assert f"the weights of {SINGLE_FILE} are read, and not {name} (" in said
    assert "with the same values" in said
    OTHERS[name](tmp_path, state | {"a": torch.cat((state["a"][:69], make_state(1)["a"][69:]))})
    with pytest.raises(ValueError, match=f"{SINGLE_FILE} and {name} hold two models: a has other values. Delete the"):
        SafetensorsFolder(tmp_path)
    OTHERS[name](tmp_path, state | {"a": state["a"][:69]})
    with pytest.raises(
        ValueError, match=rf"and {name} hold two models: a has shape \(70, 50\) in model.safetensors, \(6"
    ):
        SafetensorsFolder(tmp_path)


def test_an_index_and_a_single_file(tmp_path):
    state = make_state()
    write_shards(tmp_path, state)
    save_file(state, tmp_path / SINGLE_FILE)
    _, [said] = said_of(tmp_path)
    assert f"the weights of {INDEX_FILE} are read, and not {SINGLE_FILE} (2 of 2 tensors, with the same values)" in said
    save_file(make_state(1), tmp_path / SINGLE_FILE)
    with pytest.raises(ValueError, match=f"{INDEX_FILE} and {SINGLE_FILE} hold two models: a has other values"):
        SafetensorsFolder(tmp_path)
    for name in SHARDS:
        (tmp_path / name).unlink()
    with pytest.raises(ValueError, match=f"missing; fetch it again, or delete {INDEX_FILE} to read {SINGLE_FILE}"):
        SafetensorsFolder(tmp_path)


def test_what_is_one_model_is_not_spoken_of(tmp_path):
    state = make_state()
    write_shards(tmp_path, state)
    for name in ("training_args.bin", "optimizer.pt", "README.md"):
        (tmp_path / name).write_bytes(b"x")
    save_file({"other": torch.ones(1)}, tmp_path / "vectors.safetensors")
    assert said_of(tmp_path)[1] == []
    (tmp_path / INDEX_FILE).write_text(json.dumps({"weight_map": dict.fromkeys(state, SINGLE_FILE)}))
    for name in SHARDS:
        (tmp_path / name).unlink()
    save_file(state, tmp_path / SINGLE_FILE)
    assert said_of(tmp_path)[1] == []


def test_shards_that_the_index_does_not_name_are_said(tmp_path):
    write_shards(tmp_path, make_state())
    save_file(make_state(1), tmp_path / "model-00001-of-00004.safetensors")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    read, [said] = said_of(tmp_path)
    assert "not model-00001-of-00004.safetensors (the index does not name it), model.gguf (not compared)." in said
    assert read.tensor("a").equal(make_state()["a"])


def test_what_cannot_be_compared_is_said(tmp_path):
    save_file(make_state(), tmp_path / SINGLE_FILE)
    (tmp_path / "pytorch_model.bin").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 146946961\n"
    )
    _, [said] = said_of(tmp_path)
    assert "pytorch_model.bin (not compared: " in said
    assert "is a git-lfs pointer, 146,946,961 bytes are missing" in said


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_adapters_beside_whole_weights(tmp_path, name):
    save_file(make_state(), tmp_path / SINGLE_FILE)
    save_file({"x": torch.ones(1)}, tmp_path / name)
    with pytest.raises(
        ValueError, match=rf"{name} beside the whole weights of model.safetensors.*Move them to a folder"
    ):
        SafetensorsFolder(tmp_path)
    (tmp_path / SINGLE_FILE).unlink()
    remedy = "adapters, no model" if name.endswith("safetensors") else "read from safetensors only"
    with pytest.raises(ValueError, match=remedy):
        SafetensorsFolder(tmp_path)


def test_shards_without_an_index(tmp_path):
    write_shards(tmp_path, make_state())
    (tmp_path / INDEX_FILE).unlink()
    with pytest.raises(ValueError, match=f"model.safetensors missing; there are shards, but {INDEX_FILE} does not say"):
        SafetensorsFolder(tmp_path)


def test_not_a_number_equals_itself(tmp_path):
    state = make_state() | {"c": torch.tensor([float("nan"), 1.0])}
    save_file(state, tmp_path / SINGLE_FILE)
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert "(3 of 3 tensors, with the same values)" in said_of(tmp_path)[1][0]


PAGE = "<!DOCTYPE html><html><body>404</body></html>"
POINTER = (Path(__file__).parents[1] / "data" / "cases" / "lfs_pointer" / "rows.jsonl").read_text()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (PAGE, "is an HTML or XML page"),
        (POINTER, "is a git-lfs pointer, 146,946,961 bytes are missing"),
        ("", "is empty"),
    ],
)
@pytest.mark.parametrize(
    "name",
    ["config.json", SINGLE_FILE, INDEX_FILE, "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"],
)
def test_what_is_no_model_file_is_recognised(llada_dir, tmp_path, name, content, message):
    folder = shutil.copytree(llada_dir, tmp_path / "model")
    (folder / name).write_text(content)
    with pytest.raises(ValueError, match=rf"{name} {message}"):
        load_pretrained(folder)


@pytest.mark.parametrize(
    ("content", "message"), [(PAGE, "is an HTML or XML page"), (POINTER, "is a git-lfs pointer, 146")]
)
def test_shards_of_checkpoints(tmp_path, content, message):
    path = tmp_path / "zero_pp_rank_0_mp_rank_00_optim_states.pt"
    path.write_text(content)
    with pytest.raises(ValueError, match=f"no whole file of torch.save.*optim_states.pt {message}"):
        open_torch_file(path)


@pytest.mark.parametrize("content", [PAGE, POINTER])
def test_a_bare_sentencepiece_model(tmp_path, content):
    (tmp_path / "tokenizer.model").write_text(content)
    with pytest.raises(ValueError, match="tokenizer.model is "):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_adapters_that_are_pointers(tmp_path, name):
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 4}')
    save_file({"x": torch.ones(1)}, tmp_path / "adapter_model.safetensors")
    (tmp_path / name).write_text(POINTER)
    with pytest.raises(ValueError, match=f"{name} is a git-lfs pointer, 146,946,961 bytes are missing"):
        AdapterFolder(tmp_path)
