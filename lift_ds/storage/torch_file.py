"""Files of `torch.save`, opened without executing their pickle and without reading their tensors.

Such a file is a zip archive whose entries are not compressed: `NAME/data.pkl` is the pickle, `NAME/data/KEY` the bytes
of storage KEY, so that a tensor is a range of the file. Each entry has a CRC-32.

A pickle names classes and calls them. Here only the names in `ALLOWED` are known, and each stands for something of
ours: a tensor becomes a `StoredTensor`, whose data stays in the file, and an object of DeepSpeed's becomes a `Stand`,
which holds its state and can be written again. Any other name is an error before anything of it is imported.
"""

from __future__ import annotations

import collections
import copyreg
import io
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .file_diagnosis import explain
from .stored_tensor import Storage, StoredTensor

LOCAL_HEADER = struct.Struct("<4s22xHH")
LOCAL_SIGNATURE = b"PK\x03\x04"
MAX_PICKLE_BYTES = 1 << 30
STORAGE_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
ZERO_STAGE = ("deepspeed.runtime.zero.config", "ZeroStageEnum")
FRAGMENT_ADDRESS = ("deepspeed.utils.tensor_fragment", "fragment_address")
STANDS = (
    ZERO_STAGE,
    ("deepspeed.runtime.fp16.loss_scaler", "LossScaler"),
    ("deepspeed.runtime.fp16.loss_scaler", "DynamicLossScaler"),
    FRAGMENT_ADDRESS,
)
STAGES = {"disabled": 0, "optimizer_states": 1, "gradients": 2, "weights": 3, "max_stage": 3}


class Stand:
    """An object of a class that is not imported: the arguments that it was made from, and its attributes."""

    arguments: tuple[Any, ...]

    def __new__(cls, *arguments: Any) -> Stand:
        """Notes the arguments."""
        made = super().__new__(cls)
        made.arguments = arguments
        return made

    def __init__(self, *arguments: Any) -> None:
        """They are noted already."""

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        state = {name: value for name, value in vars(self).items() if name != "arguments"}
        return copyreg.__newobj__, (type(self), *self.arguments), state or None  # type: ignore[attr-defined]


def _rebuild_tensor(
    storage: Storage, start: int, shape: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> StoredTensor:
    return StoredTensor(torch.Size(shape), storage.dtype, storage, start, tuple(stride))


def _rebuild_parameter(tensor: StoredTensor, *_: Any) -> StoredTensor:
    return tensor


def _rebuild_with_attributes(function: Callable[..., Any], _kind: Any, arguments: tuple[Any, ...], _state: Any) -> Any:
    return function(*arguments)


def _member_of(kind: Any, name: Any) -> Stand:
    """DeepSpeed's ZeRO stage by its name: how the first versions of Python 3.11 write a member of an enumeration."""
    if kind is not ALLOWED[ZERO_STAGE] or name not in STAGES:
        raise ValueError(f"it asks for {name!r} of {kind!r}, which no checkpoint of DeepSpeed's needs")
    return Stand.__new__(kind, STAGES[name])


def _encode_latin1(text: str, encoding: str) -> bytes:
    """How protocol 2 writes bytes."""
    if encoding != "latin1":
        raise ValueError(f"encoding {encoding!r}")
    return text.encode("latin1")


_OF_BUILTINS = {"set": set, "frozenset": frozenset, "getattr": _member_of}
ALLOWED: dict[tuple[str, str], Any] = {  # module and name of all that a pickle may use, with what stands for it
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("_codecs", "encode"): _encode_latin1,
    ("torch", "Size"): torch.Size,
    ("torch", "device"): str,
    ("torch", "Tensor"): StoredTensor,
    ("torch.nn.parameter", "Parameter"): StoredTensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): _rebuild_with_attributes,
    **{(module, name): made for module in ("builtins", "__builtin__") for name, made in _OF_BUILTINS.items()},
    **{("torch", name): dtype for name, dtype in STORAGE_DTYPES.items()},
    **{("torch", str(dtype).removeprefix("torch.")): dtype for dtype in STORAGE_DTYPES.values()},
    **{(module, name): type(name, (Stand,), {"__module__": module}) for module, name in STANDS},
}


class ForbiddenNameError(ValueError):
    """A pickle names something that no checkpoint needs."""


class _SafeUnpickler(pickle.Unpickler):
    def __init__(self, archive: _Archive) -> None:
        super().__init__(io.BytesIO(archive.pickle))
        self.archive = archive

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise ForbiddenNameError(
                f"{self.archive.path}: its pickle names {module}.{name}, which no checkpoint of DeepSpeed's needs; "
                "nothing of it was executed. Only tensors, plain containers and DeepSpeed's own "
                f"{', '.join(sorted(name for _, name in STANDS))} are read. Do not load this file with torch.load "
                "unless you trust who made it."
            )
        return ALLOWED[module, name]

    def persistent_load(self, identity: Any) -> Storage:
        match identity:
            case ("storage", torch.dtype() as dtype, str(key), _, int(num_elements)):
                return self.archive.open_storage(key, dtype, num_elements)
        raise ValueError(f"an unknown reference {identity!r}")


class _Archive:
    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive:
                self.entries = {entry.filename: entry for entry in archive.infolist()}
                name = next((name for name in self.entries if name.endswith("/data.pkl")), None)
                if name is None or self.entries[name].file_size > MAX_PICKLE_BYTES:
                    raise ValueError(f"{path}: no file of torch.save: it has no data.pkl, or one of more than 1 GiB.")
                self.folder = name.removesuffix("data.pkl")
                self.pickle = archive.read(name)
                order = f"{self.folder}byteorder"
                if order in self.entries and archive.read(order) != b"little":
                    raise ValueError(f"{path}: written on a big-endian machine; only little-endian files are read.")
        except zipfile.BadZipFile as error:
            older = " It is truncated, damaged, or of torch before 1.6: copy it again, or take another checkpoint."
            raise ValueError(f"{path}: no whole file of torch.save ({error}).{explain(path) or older}") from error
        self.size = path.stat().st_size
        self.storages: dict[str, Storage] = {}

    def open_storage(self, key: str, dtype: torch.dtype, num_elements: int) -> Storage:
        if key not in self.storages:
            entry = self.entries.get(f"{self.folder}data/{key}")
            if entry is None:
                raise ValueError(f"storage {key} is missing")
            expected = num_elements * dtype.itemsize
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != expected:
                raise ValueError(f"storage {key} has {entry.file_size} bytes instead of {expected}, or is compressed")
            self.storages[key] = Storage(self.path, self.find_data(entry), num_elements, dtype, entry.CRC)
        storage = self.storages[key]
        if (storage.dtype, storage.num_elements) != (dtype, num_elements):
            raise ValueError(f"storage {key} is used as {dtype} and as {storage.dtype}")
        return storage

    def find_data(self, entry: zipfile.ZipInfo) -> int:
        """Byte at which an entry's data begins, behind its own header."""
        with open(self.path, "rb") as file:
            head = os.pread(file.fileno(), LOCAL_HEADER.size, entry.header_offset)
        if len(head) != LOCAL_HEADER.size or not head.startswith(LOCAL_SIGNATURE):
            raise ValueError(f"no entry at byte {entry.header_offset}")
        _, name_length, extra_length = LOCAL_HEADER.unpack(head)
        offset = entry.header_offset + LOCAL_HEADER.size + int(name_length) + int(extra_length)
        if offset + entry.file_size > self.size:
            raise ValueError(f"{entry.filename} ends behind the end of the file")
        return int(offset)


@dataclass(frozen=True)
class TorchFile:
    """An opened file.

    Args:
        path: Where it is.
        root: What was saved; its tensors are `StoredTensor`s.
        storages: Every storage that the pickle uses, by key.
    """

    path: Path
    root: Any
    storages: dict[str, Storage]


def open_torch_file(path: Path) -> TorchFile:
    """Opens a file of `torch.save`.

    Raises:
        ValueError: It is missing, damaged, or its pickle names what no checkpoint needs; nothing was executed.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file.")
    archive = _Archive(path)
    try:
        root = _SafeUnpickler(archive).load()
    except ForbiddenNameError:
        raise
    except (pickle.UnpicklingError, ValueError, TypeError, KeyError, IndexError, AttributeError, EOFError) as error:
        raise ValueError(f"{path}: its pickle cannot be read: {error}. The file is damaged or foreign.") from error
    return TorchFile(path, root, archive.storages)
