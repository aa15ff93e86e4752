import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lift_ds.storage.safetensors_file import INDEX_FILE, ShardWriter, read_header
from lift_ds.storage.stored_tensor import TensorSpec


def specs_of(state):
    return {name: TensorSpec(tensor.shape, tensor.dtype) for name, tensor in state.items()}


@pytest.fixture
def state():
    generator = torch.Generator().manual_seed(0)
    return {
        "b.weight": torch.randn(5, 3, generator=generator).bfloat16(),
        "a.weight": torch.randn(7, generator=generator),
        "scalar": torch.tensor(3.5, dtype=torch.float64),
        "empty": torch.zeros(0, 4),
        "ids": torch.arange(9).view(3, 3),
    }


def write(folder, state, max_shard_bytes):
    folder.mkdir()
    with ShardWriter(folder, specs_of(state), max_shard_bytes) as writer:
        for name, tensor in state.items():
            writer.write(name, tensor)
    return folder


def test_one_file(state, tmp_path):
    folder = write(tmp_path / "out", state, 10**9)
    assert [path.name for path in folder.iterdir()] == ["model.safetensors"]
    loaded = load_file(folder / "model.safetensors")
    assert set(loaded) == set(state)
    assert all(torch.equal(loaded[name], state[name]) and loaded[name].dtype == state[name].dtype for name in state)
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert (folder / "model.safetensors").stat().st_mode & 0o777 == 0o644
    places = read_header(folder / "model.safetensors")
    assert all(place.storage.offset % place.dtype.itemsize == 0 for place in places.values())


def test_shards_and_index(state, tmp_path):
    """30 + 28 bytes fill a file of 60; the scalar's 8 and nothing open the next, to which 72 do not fit."""
    folder = write(tmp_path / "out", state, 60)
    index = json.loads((folder / INDEX_FILE).read_text())
    first, second, third = (f"model-{number:05d}-of-00003.safetensors" for number in (1, 2, 3))
    places = {"b.weight": first, "a.weight": first, "scalar": second, "empty": second, "ids": third}
    assert index == {"metadata": {"total_size": 30 + 28 + 8 + 0 + 72}, "weight_map": places}
    for name, file_name in places.items():
        assert torch.equal(load_file(folder / file_name)[name], state[name])


def test_pieces_in_any_order_are_rounded_to_the_files_type(tmp_path):
    whole = torch.randn(4, 5)
    with ShardWriter(tmp_path, {"w": TensorSpec(whole.shape, torch.bfloat16)}, 10**9) as writer:
        writer.write("w", whole.flatten()[12:], start=12)
        writer.write("w", whole.flatten()[:12].view(3, 4))
    assert torch.equal(load_file(tmp_path / "model.safetensors")["w"], whole.bfloat16())


@pytest.mark.parametrize("pieces", [[(0, 6)], [(0, 6), (4, 10)], [(0, 10), (0, 10)], [(0, 11)]])
def test_elements_that_are_missing_or_come_twice(tmp_path, pieces):
    with (
        pytest.raises(AssertionError, match=r"w: (not every element was written once|elements 0 to 11 of 10)"),
        ShardWriter(tmp_path, {"w": TensorSpec(torch.Size([10]), torch.float32)}, 10**9) as writer,
    ):
        for start, end in pieces:
            writer.write("w", torch.zeros(end - start), start)


def test_headers_are_read_as_safetensors_reads_them(state, tmp_path):
    save_file(state, tmp_path / "theirs.safetensors")
    places = read_header(tmp_path / "theirs.safetensors")
    data = (tmp_path / "theirs.safetensors").read_bytes()
    for name, tensor in state.items():
        place = places[name]
        assert (place.shape, place.dtype) == (tensor.shape, tensor.dtype)
        found = data[place.storage.offset : place.storage.offset + place.num_bytes]
        assert found == tensor.flatten().view(torch.uint8).numpy().tobytes()


HEADER = {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


def file_of(header, num_bytes=8):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(num_bytes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "0 bytes cannot hold a header of 0"),
        (b"\xff" * 8 + b"x", "9 bytes cannot hold a header of 18446744073709551615"),
        (file_of(b"{not json"), "its header cannot be read"),
        (file_of(b"[]"), "its header cannot be read"),
        (file_of({"w": HEADER["w"] | {"dtype": "F33"}}), "dtype 'F33'; known: F64"),
        (file_of({"w": HEADER["w"] | {"shape": [3]}}), r"shape \[3\] of F32 at bytes 0 to 8"),
        (file_of({"w": HEADER["w"] | {"shape": [-1, -2]}}), r"shape \[-1, -2\] of F32"),
        (file_of({"w": {"dtype": "F32"}}), "its header cannot be read .KeyError: 'shape'"),
        (file_of({"w": HEADER["w"] | {"data_offsets": [4, 12]}}, 12), "w begins at byte 7., not at 7."),
        (file_of(HEADER, 7), r"7\d bytes, where its header describes 7\d"),
        (file_of(HEADER, 9), r"7\d bytes, where its header describes 7\d"),
    ],
)
def test_broken_files(tmp_path, content, message):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=rf"model.safetensors: no readable.*{message}.*(Is it whole\?|is empty)"):
        read_header(tmp_path / "model.safetensors")


def test_a_file_that_exists_is_not_touched(tmp_path):
    (tmp_path / "model.safetensors").write_text("mine")
    with pytest.raises(FileExistsError):
        ShardWriter(tmp_path, {"w": TensorSpec(torch.Size([1]), torch.float32)}, 10**9)
    assert (tmp_path / "model.safetensors").read_text() == "mine"
