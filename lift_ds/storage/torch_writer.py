"""Files of `torch.save`, written from tensors that are read as they are needed.

The same layout as torch writes: a zip archive without compression, each storage aligned to 64 bytes so that it can be
mapped. Objects that were read as a `Stand` are written under their own names, without importing them.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .flat_groups import FlatTensor, whole
from .stored_tensor import CHUNK_ELEMENTS, StoredTensor, bytes_of, row_major
from .torch_file import STORAGE_DTYPES, Stand

ALIGNMENT = 64
PROTOCOL = 2
LOCAL_HEADER_BYTES = 30
ZIP64_BYTES = 20
PADDING_HEADER = b"FB"
EPOCH = (1980, 1, 1, 0, 0, 0)
TYPE_OF_DTYPE = {dtype: getattr(torch, name) for name, dtype in STORAGE_DTYPES.items()}


@dataclass
class _Key:
    number: int
    tensor: FlatTensor


class _TensorPickler(pickle._Pickler):
    """Pickles a tree as `torch.save` does; its tensors are collected."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, PROTOCOL)
        self.tensors: list[FlatTensor] = []

    def persistent_id(self, obj: Any) -> Any:
        if not isinstance(obj, _Key):
            return None
        return ("storage", TYPE_OF_DTYPE[obj.tensor.dtype], str(obj.number), "cpu", obj.tensor.num_elements)

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, StoredTensor):
            obj = whole(obj)
        if not isinstance(obj, FlatTensor):
            return NotImplemented
        self.tensors.append(obj)
        key, shape = _Key(len(self.tensors) - 1, obj), tuple(obj.shape)
        return torch._utils._rebuild_tensor_v2, (key, 0, shape, row_major(shape), False, OrderedDict())

    def save_global(self, obj: Any, name: str | None = None) -> None:
        """Writes the name of a class; that of a stand without importing it."""
        if isinstance(obj, type) and issubclass(obj, Stand):
            written = pickle.GLOBAL + f"{obj.__module__}\n{obj.__qualname__}\n".encode()
            self.write(written)  # type: ignore[attr-defined]
            self.memoize(obj)  # type: ignore[attr-defined]
            return
        super().save_global(obj, name)  # type: ignore[misc]


def write_torch_file(path: Path, root: Any) -> None:
    """Writes a file that `torch.load` and `open_torch_file` read.

    Args:
        path: Where to.
        root: A tree of plain values, stands, and flat or stored tensors.

    Raises:
        OSError: It cannot be written.
    """
    buffer = io.BytesIO()
    pickler = _TensorPickler(buffer)
    pickler.dump(root)
    folder = path.stem
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo(f"{folder}/data.pkl", EPOCH), buffer.getvalue())
        archive.writestr(zipfile.ZipInfo(f"{folder}/byteorder", EPOCH), b"little")
        for number, tensor in enumerate(pickler.tensors):
            entry = zipfile.ZipInfo(f"{folder}/data/{number}", EPOCH)
            entry.extra = _padding(archive.start_dir, len(entry.filename))
            with archive.open(entry, "w", force_zip64=True) as file:
                for _, chunk in tensor.chunks(CHUNK_ELEMENTS):
                    file.write(bytes_of(chunk))
        archive.writestr(zipfile.ZipInfo(f"{folder}/version", EPOCH), b"3\n")


def _padding(offset: int, name_length: int) -> bytes:
    """An extra field that makes an entry's data begin at a multiple of 64 bytes."""
    begin = offset + LOCAL_HEADER_BYTES + name_length + ZIP64_BYTES + len(PADDING_HEADER) + 2
    missing = -begin % ALIGNMENT
    return PADDING_HEADER + missing.to_bytes(2, "little") + b"Z" * missing
