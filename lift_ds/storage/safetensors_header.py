"""The header of a safetensors file: names, types, shapes and offsets of its tensors.

    8 bytes      length n of the header, little-endian
    n bytes      JSON: {"name": {"dtype": "BF16", "shape": [3, 4], "data_offsets": [begin, end]}, "__metadata__": {...}}
    the rest     the tensors, row by row, one behind the other without gaps; offsets count from here

Source: the format's public description. Headers are judged before anything is allocated or read.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from lift_ds.text_files import load_json

from .file_diagnosis import explain
from .stored_tensor import Storage, StoredTensor, TensorSpec, row_major

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
    return StoredTensor(storage, 0, spec.shape, row_major(spec.shape))


def _broken(path: Path, reason: str) -> ValueError:
    remedy = explain(path) or " Is it whole? Copy or fetch it again."
    return ValueError(f"{path}: no readable safetensors file: {reason}.{remedy}")
