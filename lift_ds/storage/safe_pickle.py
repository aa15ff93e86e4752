"""Pickles of torch files, read without executing anything.

A pickle names classes and calls them. Here only the names below are known, and each stands for something of ours: a
tensor becomes a `StoredTensor`, whose data stays in the file, and an object of DeepSpeed's becomes a `Stand`, which
holds its state and can be written again. Any other name is an error before anything of it is imported.
"""

from __future__ import annotations

import collections
import copyreg
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .stored_tensor import Storage, StoredTensor

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
DTYPE_NAMES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
STANDS = (
    ("deepspeed.runtime.zero.config", "ZeroStageEnum"),
    ("deepspeed.runtime.fp16.loss_scaler", "LossScaler"),
    ("deepspeed.runtime.fp16.loss_scaler", "DynamicLossScaler"),
    ("deepspeed.utils.tensor_fragment", "fragment_address"),
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
        """What it was read from, so that it can be written again."""
        state = {name: value for name, value in vars(self).items() if name != "arguments"}
        return copyreg.__newobj__, (type(self), *self.arguments), state or None  # type: ignore[attr-defined]


def rebuild_tensor(
    storage: Storage, start: int, shape: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> StoredTensor:
    """A tensor whose data stays where it is."""
    return StoredTensor(storage, start, tuple(shape), tuple(stride))


def rebuild_parameter(tensor: StoredTensor, *_: Any) -> StoredTensor:
    """A parameter is its tensor."""
    return tensor


def rebuild_with_attributes(function: Callable[..., Any], _kind: Any, arguments: tuple[Any, ...], _state: Any) -> Any:
    """A tensor without the attributes that were set on it."""
    return function(*arguments)


def member_of(kind: Any, name: Any) -> Stand:
    """DeepSpeed's ZeRO stage by its name: how the first versions of Python 3.11 write a member of an enumeration.

    Raises:
        ValueError: Something else is asked for by name.
    """
    if kind is not ALLOWED["deepspeed.runtime.zero.config", "ZeroStageEnum"] or name not in STAGES:
        raise ValueError(f"it asks for {name!r} of {kind!r}, which no checkpoint of DeepSpeed's needs")
    return Stand.__new__(kind, STAGES[name])


def encode_latin1(text: str, encoding: str) -> bytes:
    """How protocol 2 writes bytes.

    Raises:
        ValueError: Another encoding is asked for.
    """
    if encoding != "latin1":
        raise ValueError(f"encoding {encoding!r}")
    return text.encode("latin1")


def allowed_names() -> dict[tuple[str, str], Any]:
    """Module and name of everything that a pickle may use, with what stands for it."""
    allowed: dict[tuple[str, str], Any] = {
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("_codecs", "encode"): encode_latin1,
        ("torch", "Size"): torch.Size,
        ("torch", "device"): str,
        ("torch", "Tensor"): StoredTensor,
        ("torch.nn.parameter", "Parameter"): StoredTensor,
        ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
        ("torch._utils", "_rebuild_parameter"): rebuild_parameter,
        ("torch._tensor", "_rebuild_from_type_v2"): rebuild_with_attributes,
    }
    for module in ("builtins", "__builtin__"):
        allowed |= {(module, "set"): set, (module, "frozenset"): frozenset, (module, "getattr"): member_of}
    allowed |= {("torch", name): dtype for name, dtype in STORAGE_DTYPES.items()}
    allowed |= {("torch", name): getattr(torch, name) for name in DTYPE_NAMES}
    return allowed | {(module, name): type(name, (Stand,), {"__module__": module}) for module, name in STANDS}


ALLOWED = allowed_names()


class SafeUnpickler(pickle.Unpickler):
    """Reads a torch file's pickle; see the module.

    Args:
        data: The pickle.
        path: Its file, for messages.
        open_storage: Gives the storage of a key, a type and a number of elements.
    """

    def __init__(self, data: bytes, path: Path, open_storage: Callable[[str, torch.dtype, int], Storage]) -> None:
        """Stores the arguments."""
        super().__init__(io.BytesIO(data))
        self.path, self.open_storage = path, open_storage

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a name.

        Raises:
            ValueError: The name is not among the allowed ones.
        """
        if (module, name) not in ALLOWED:
            raise ForbiddenNameError(
                f"{self.path}: its pickle names {module}.{name}, which no checkpoint of DeepSpeed's needs; nothing of "
                "it was executed. Only tensors, plain containers and DeepSpeed's own "
                f"{', '.join(sorted(name for _, name in STANDS))} are read. Do not load this file with torch.load "
                "unless you trust who made it."
            )
        return ALLOWED[module, name]

    def persistent_load(self, identity: Any) -> Storage:
        """A tensor's storage.

        Raises:
            ValueError: It is no reference to a storage.
        """
        match identity:
            case ("storage", torch.dtype() as dtype, str(key), _, int(num_elements)):
                return self.open_storage(key, dtype, num_elements)
        raise ValueError(f"an unknown reference {identity!r}")


class ForbiddenNameError(ValueError):
    """A pickle names something that no checkpoint needs."""
