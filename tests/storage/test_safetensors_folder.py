import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from lift_ds.storage import safetensors_folder
from lift_ds.storage.safetensors_file import INDEX_FILE
from lift_ds.storage.safetensors_folder import SafetensorsFolder


@pytest.fixture
def state():
    generator = torch.Generator().manual_seed(0)
    return {"a": torch.randn(7, 5, generator=generator), "b": torch.randn(3, generator=generator).bfloat16()}


@pytest.fixture
def sharded(state, tmp_path):
    """Two files, `a` (140 bytes) and `b`, with their index."""
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"a": state["a"]}, folder / "model-00001-of-00002.safetensors")
    save_file({"b": state["b"]}, folder / "model-00002-of-00002.safetensors")
    write_index(folder, {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"})
    return folder


def write_index(folder, weight_map):
    (folder / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.mark.parametrize("piece_bytes", [16, 1 << 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_ranges(sharded, state, dtype, piece_bytes, monkeypatch):
    """Elements 4 to 29 of 35, whatever the piece (of 4 elements, or of all) and the type in memory."""
    monkeypatch.setattr(safetensors_folder, "PIECE_BYTES", piece_bytes)
    into = torch.empty(25, dtype=dtype)
    SafetensorsFolder(sharded).read("a", into, start=4)
    assert torch.equal(into, state["a"].flatten()[4:29].to(dtype))


def test_whole_tensors(sharded, state):
    folder = SafetensorsFolder(sharded)
    assert all(torch.equal(folder.tensor(name), tensor) for name, tensor in state.items())
    assert folder.tensor("a", torch.bfloat16).equal(state["a"].bfloat16())
    assert folder.shapes() == {"a": (7, 5), "b": (3,)}
    assert folder.entries["b"].dtype == torch.bfloat16


def test_only_the_bytes_of_the_range_are_read(sharded, monkeypatch):
    asked = []
    read = os.preadv

    def counted(handle, buffers, offset):
        asked.append(sum(len(each) for each in buffers))
        return read(handle, buffers, offset)

    folder = SafetensorsFolder(sharded)
    monkeypatch.setattr(os, "preadv", counted)
    folder.read("a", torch.empty(10), start=5)
    folder.read("b", torch.empty(2), start=1)
    folder.read("b", torch.empty(0), start=3)
    assert asked == [40, 4]


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        (None, r"model.safetensors.index.json: no readable index \(AttributeError"),
        ({"a": 3}, r"model.safetensors.index.json: no readable index \(TypeError"),
        ({"a": "../model-00001-of-00002.safetensors"}, r"only names of files in the same folder are allowed"),
        ({"a": "model-00001-of-00002.safetensors", "b": "gone.safetensors"}, r"gone.safetensors missing"),
        (
            {"a": "model-00001-of-00002.safetensors", "b": "model-00001-of-00002.safetensors"},
            "and its files do not agree on b",
        ),
    ],
)
def test_a_wrong_index(sharded, weight_map, message):
    write_index(sharded, weight_map)
    with pytest.raises(ValueError, match=message):
        SafetensorsFolder(sharded)


def test_no_weights(tmp_path):
    with pytest.raises(ValueError, match=r"model.safetensors missing; weights are read from safetensors only"):
        SafetensorsFolder(tmp_path)


def test_a_truncated_shard_is_found_before_anything_is_read(sharded):
    path = sharded / "model-00002-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"model-00002-of-00002.safetensors: no readable safetensors file: \d+ bytes"):
        SafetensorsFolder(sharded)


def test_a_file_that_becomes_shorter(sharded):
    folder = SafetensorsFolder(sharded)
    os.truncate(sharded / "model-00001-of-00002.safetensors", 100)
    with pytest.raises(RuntimeError, match="became shorter while it was read"):
        folder.tensor("a")


def test_quantised_weights_are_not_taken_for_plain_ones(tmp_path):
    save_file({"q_proj.weight": torch.zeros(4, dtype=torch.int8)}, tmp_path / "model.safetensors")
    folder = SafetensorsFolder(tmp_path)
    assert folder.tensor("q_proj.weight").equal(load_file(tmp_path / "model.safetensors")["q_proj.weight"])
    with pytest.raises(ValueError, match=r"q_proj.weight is stored as int8; allowed: float64, .*unquantised"):
        folder.read("q_proj.weight", torch.empty(2))
