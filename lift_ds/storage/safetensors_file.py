"""Safetensors files: the header that names types, shapes and offsets, and files that are written as data comes.

    8 bytes      length n of the header, little-endian
    n bytes      JSON: {"name": {"dtype": "BF16", "shape": [3, 4], "data_offsets": [begin, end]}, "__metadata__": {...}}
    the rest     the tensors, row by row, one behind the other without gaps; offsets count from here

Source: the format's public description. Headers are judged before anything is allocated or read.

    specs = {"a.weight": TensorSpec(torch.Size([4, 3]), torch.bfloat16)}
    with ShardWriter(folder, specs, max_shard_bytes=5 * 10**9) as writer:
        writer.write("a.weight", first_half)                 # pieces of the flattened tensor, in any order
        writer.write("a.weight", second_half, start=6)

The files are planned from names, shapes and types alone, so that no more than one piece is ever held.
"""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from lift_ds.text_files import load_json

from .file_diagnosis import explain
from .stored_tensor import Storage, StoredTensor, TensorSpec, bytes_of, row_major

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
SHARD_FILE = "model-{number:05d}-of-{total:05d}.safetensors"
READABLE = 0o644
DTYPE_OF_NAME = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAME_OF_DTYPE = {dtype: name for name, dtype in DTYPE_OF_NAME.items()}
METADATA = "__metadata__"
LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000
ALIGNMENT = 8


def make_header(specs: dict[str, TensorSpec]) -> tuple[bytes, dict[str, int]]:
    """The first bytes of a file with these tensors, one behind the other in this order.

    Returns:
        Length and header, filled up so that the data begins at a multiple of 8; and at which byte of the file each
        tensor begins.
    """
    entries: dict[str, Any] = {METADATA: {"format": "pt"}}
    begin = 0
    begins = {}
    for name, spec in specs.items():
        begins[name], end = begin, begin + spec.num_bytes
        entries[name] = {"dtype": NAME_OF_DTYPE[spec.dtype], "shape": list(spec.shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    head = len(text).to_bytes(LENGTH_BYTES, "little") + text
    return head, {name: len(head) + offset for name, offset in begins.items()}


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a file, by name, in the order of their data.

    Raises:
        ValueError: It is no whole safetensors file: too short, no JSON, an unknown type, or offsets that do not fit the
            shapes, each other or the file's size.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(LENGTH_BYTES), "little")
        if size < LENGTH_BYTES or length > min(size - LENGTH_BYTES, MAX_HEADER_BYTES):
            raise _broken(path, f"{size} bytes cannot hold a header of {length}")
        text = file.read(length)
    try:
        header = load_json(text.decode())
        header.pop(METADATA, None)
        tensors = {name: _read_entry(path, fields, LENGTH_BYTES + length) for name, fields in header.items()}
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise _broken(path, f"its header cannot be read ({type(error).__name__}: {error})") from error
    ordered = dict(sorted(tensors.items(), key=lambda item: (item[1].storage.offset, item[1].storage.num_bytes)))
    expected = LENGTH_BYTES + length
    for name, tensor in ordered.items():
        if tensor.storage.offset != expected:
            raise _broken(path, f"{name} begins at byte {tensor.storage.offset}, not at {expected}")
        expected += tensor.storage.num_bytes
    if expected != size:
        raise _broken(path, f"{size} bytes, where its header describes {expected}")
    return ordered


def _read_entry(path: Path, fields: dict[str, Any], data_begin: int) -> StoredTensor:
    if fields["dtype"] not in DTYPE_OF_NAME:
        raise ValueError(f"dtype {fields['dtype']!r}; known: {', '.join(DTYPE_OF_NAME)}")
    spec = TensorSpec(torch.Size(fields["shape"]), DTYPE_OF_NAME[fields["dtype"]])
    begin, end = fields["data_offsets"]
    if end - begin != spec.num_bytes or begin < 0 or min(spec.shape, default=0) < 0:
        raise ValueError(f"shape {fields['shape']} of {fields['dtype']} at bytes {begin} to {end}")
    storage = Storage(path, data_begin + begin, spec.num_elements, spec.dtype)
    return StoredTensor(spec.shape, spec.dtype, storage, 0, row_major(spec.shape))


def _broken(path: Path, reason: str) -> ValueError:
    remedy = explain(path) or " Is it whole? Copy or fetch it again."
    return ValueError(f"{path}: no readable safetensors file: {reason}.{remedy}")


def plan_shards(specs: dict[str, TensorSpec], max_shard_bytes: int) -> dict[str, dict[str, TensorSpec]]:
    """Which file holds which tensors, in the given order.

    Args:
        specs: Every tensor.
        max_shard_bytes: Most bytes of data in a file; a larger tensor gets a file of its own.

    Returns:
        Tensors by file name. Inside a file wider types come first, so that every tensor is aligned to its type.
    """
    shards: list[dict[str, TensorSpec]] = [{}]
    taken = 0
    for name, spec in specs.items():
        if shards[-1] and taken + spec.num_bytes > max_shard_bytes:
            shards.append({})
            taken = 0
        shards[-1][name] = spec
        taken += spec.num_bytes
    ordered = [dict(sorted(shard.items(), key=lambda item: -item[1].dtype.itemsize)) for shard in shards]
    if len(ordered) == 1:
        return {SINGLE_FILE: ordered[0]}
    return {SHARD_FILE.format(number=index + 1, total=len(ordered)): shard for index, shard in enumerate(ordered)}


def _write_at(handle: int, data: memoryview, offset: int) -> None:
    while data:  # one call to the system takes at most 2 GiB
        written = os.pwrite(handle, data, offset)
        data, offset = data[written:], offset + written


class ShardWriter:
    """Writes the tensors of a folder, piece by piece; at the end of a block that ends well, their index.

    Args:
        folder: An existing folder.
        specs: Every tensor with its shape and the type that is written.
        max_shard_bytes: As in `plan_shards`.

    Raises:
        OSError: A file exists, or cannot be written.
    """

    def __init__(self, folder: Path, specs: dict[str, TensorSpec], max_shard_bytes: int) -> None:
        self.folder, self.specs = folder, specs
        self.plan = plan_shards(specs, max_shard_bytes)
        self._place: dict[str, tuple[int, int]] = {}
        self._written: dict[str, list[tuple[int, int]]] = {name: [] for name in specs}
        with ExitStack() as opened:
            for file_name, shard in self.plan.items():
                self._create(folder / file_name, shard, opened)
            self._opened = opened.pop_all()

    def _create(self, path: Path, shard: dict[str, TensorSpec], opened: ExitStack) -> None:
        """Makes a file at its full size, with its header."""
        header, offsets = make_header(shard)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, READABLE)
        opened.callback(os.close, handle)
        os.fchmod(handle, READABLE)
        os.ftruncate(handle, len(header) + sum(spec.num_bytes for spec in shard.values()))
        _write_at(handle, memoryview(header), 0)
        self._place |= {name: (handle, offset) for name, offset in offsets.items()}

    def write(self, name: str, piece: Tensor, start: int = 0) -> None:
        """Writes a piece of a tensor, rounded to the type of the file.

        Args:
            name: The tensor.
            piece: Its elements from `start` on, in any shape.
            start: Where in the flattened tensor the piece begins, in elements.

        Raises:
            OSError: The disk is full, or cannot be written.
        """
        spec = self.specs[name]
        end = start + piece.numel()
        assert start >= 0 and end <= spec.num_elements, f"{name}: elements {start} to {end} of {spec.num_elements}"
        flat = piece.detach().to(device="cpu", dtype=spec.dtype).contiguous().flatten()
        handle, offset = self._place[name]
        _write_at(handle, bytes_of(flat), offset + start * spec.dtype.itemsize)
        if piece.numel():
            self._written[name].append((start, end))

    def _finish(self) -> None:
        for name, spec in self.specs.items():
            ends = [0, *(end for _, end in sorted(self._written[name]))]
            starts = [*(start for start, _ in sorted(self._written[name])), spec.num_elements]
            assert starts == ends, f"{name}: not every element was written once"
        for handle in {handle for handle, _ in self._place.values()}:
            os.fsync(handle)
        if len(self.plan) > 1:
            weight_map = {name: file_name for file_name, shard in self.plan.items() for name in shard}
            total = sum(spec.num_bytes for spec in self.specs.values())
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            (self.folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
            (self.folder / INDEX_FILE).chmod(READABLE)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._opened:
            if error is None:
                self._finish()
