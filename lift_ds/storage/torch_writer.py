"""Files of `torch.save`, written from tensors that are read as they are needed.

The same layout as torch writes: a zip archive without compression, each storage aligned to 64 bytes so that it can be
mapped. Objects that were read as a `Stand` are written under their own names, without importing them.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .flat_groups import FlatTensor
from .safe_pickle import STORAGE_DTYPES, Stand
from .stored_tensor import StoredTensor, blocks

ALIGNMENT = 64
PROTOCOL = 2
LOCAL_HEADER_BYTES = 30
ZIP64_BYTES = 20
PADDING_HEADER = b"FB"
EPOCH = (1980, 1, 1, 0, 0, 0)
TYPE_OF_DTYPE = {dtype: getattr(torch, name) for name, dtype in STORAGE_DTYPES.items()}


@dataclass(frozen=True, eq=False)
class PlannedTensor:
    """A one-dimensional or shaped tensor that is written in order from pieces.

    Args:
        shape: Its shape.
        dtype: Its type.
        parts: What stands in it, one behind the other: ranges of tensors, and zeros as their number.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    parts: tuple[tuple[FlatTensor | StoredTensor, int, int] | int, ...]

    def chunks(self) -> Iterator[Tensor]:
        """Its elements in order, in chunks of bounded length."""
        for part in self.parts:
            tensor, start, stop = (None, 0, part) if isinstance(part, int) else part
            for low, high in blocks(start, stop):
                yield torch.zeros(high - low, dtype=self.dtype) if tensor is None else read(tensor, low, high)


def read(tensor: FlatTensor | StoredTensor, start: int, stop: int) -> Tensor:
    """A range of either kind of tensor."""
    if isinstance(tensor, FlatTensor):
        return tensor.read(start, stop)
    elements = torch.empty(stop - start, dtype=tensor.dtype)
    tensor.read_into(start, elements)
    return elements


def copied(tensor: StoredTensor) -> PlannedTensor:
    """A tensor as it was stored."""
    return PlannedTensor(tensor.shape, tensor.dtype, ((tensor, 0, tensor.num_elements),))


class _Key:
    """The place of a planned tensor's storage in the archive."""

    def __init__(self, number: int, tensor: PlannedTensor) -> None:
        """Stores both."""
        self.number, self.tensor = number, tensor


class TensorPickler(pickle._Pickler):
    """Pickles a tree with planned tensors as `torch.save` does; the tensors are collected.

    Args:
        file: Where the pickle goes.
    """

    def __init__(self, file: io.BytesIO) -> None:
        """Starts without tensors."""
        super().__init__(file, PROTOCOL)
        self.tensors: list[PlannedTensor] = []

    def persistent_id(self, obj: Any) -> Any:
        """How a storage is written; `None` for everything else."""
        if not isinstance(obj, _Key):
            return None
        size = sum(part if isinstance(part, int) else part[2] - part[1] for part in obj.tensor.parts)
        return ("storage", TYPE_OF_DTYPE[obj.tensor.dtype], str(obj.number), "cpu", size)

    def reducer_override(self, obj: Any) -> Any:
        """How a tensor is rebuilt."""
        if isinstance(obj, StoredTensor):
            obj = copied(obj)
        if not isinstance(obj, PlannedTensor):
            return NotImplemented
        self.tensors.append(obj)
        strides = [1]
        for size in reversed(obj.shape[1:]):
            strides.insert(0, strides[0] * max(size, 1))
        stride = tuple(strides) if obj.shape else ()
        key = _Key(len(self.tensors) - 1, obj)
        return torch._utils._rebuild_tensor_v2, (key, 0, tuple(obj.shape), stride, False, OrderedDict())

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
        root: A tree of plain values, stands, and planned or stored tensors.

    Raises:
        OSError: It cannot be written.
    """
    buffer = io.BytesIO()
    pickler = TensorPickler(buffer)
    pickler.dump(root)
    folder = path.stem
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo(f"{folder}/data.pkl", EPOCH), buffer.getvalue())
        archive.writestr(zipfile.ZipInfo(f"{folder}/byteorder", EPOCH), b"little")
        for number, tensor in enumerate(pickler.tensors):
            entry = zipfile.ZipInfo(f"{folder}/data/{number}", EPOCH)
            entry.extra = padding(archive.start_dir, len(entry.filename))
            with archive.open(entry, "w", force_zip64=True) as file:
                for chunk in tensor.chunks():
                    file.write(chunk.flatten().view(torch.uint8).numpy().data)
        archive.writestr(zipfile.ZipInfo(f"{folder}/version", EPOCH), b"3\n")


def padding(offset: int, name_length: int) -> bytes:
    """An extra field that makes an entry's data begin at a multiple of 64 bytes."""
    begin = offset + LOCAL_HEADER_BYTES + name_length + ZIP64_BYTES + len(PADDING_HEADER) + 2
    missing = -begin % ALIGNMENT
    return PADDING_HEADER + missing.to_bytes(2, "little") + b"Z" * missing
