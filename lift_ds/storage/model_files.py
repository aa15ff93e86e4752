"""Whether the weight files of a model folder tell one story.

A folder may hold its weights more than once: an index with shards and a single file, another type, torch's format.
Other tools may read another one of them than this package, so that files which contradict each other are refused.
Values are compared where both have a tensor of one name: all of small ones, samples of large ones.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from .file_diagnosis import explain
from .safetensors_header import TensorEntry, read_header
from .safetensors_writer import SINGLE_FILE
from .stored_tensor import StoredTensor, stored_tensor
from .torch_file import open_torch_file

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
MODEL_NAME = re.compile(r"(pytorch_)?model")  # how files begin that other tools look for
COMPARABLE = ("*.safetensors", "pytorch_model*.bin")
OTHER_FORMATS = ("*.gguf", "consolidated*.pth", "tf_model*.h5", "flax_model*.msgpack")
SAMPLES, SAMPLE_ELEMENTS = 4, 4096  # of one tensor


def check_one_truth(folder: Path, entries: Mapping[str, TensorEntry], source: str) -> None:
    """Looks at the weight files of a folder beside those that are read; warns of those that do not count.

    Args:
        folder: The folder.
        entries: Where the tensors are that are read.
        source: The index or single file that says so.

    Raises:
        ValueError: Another file holds another model, or there are adapters.
    """
    adapters = [name for name in ADAPTER_FILES if (folder / name).is_file()]
    if adapters:
        raise ValueError(
            f"{folder}: {adapters[0]} beside the whole weights of {source}: other tools put these adapters onto the "
            "weights. Move them to a folder of their own (and merge them with tools/merge_lora.py), or delete them."
        )
    read = {entry.path.name for entry in entries.values()}
    others = sorted(
        {path for pattern in COMPARABLE for path in folder.glob(pattern)} - {folder / name for name in read}
    )
    notes = []
    for path in others:
        if source != SINGLE_FILE and SHARD.fullmatch(path.name):
            notes.append(f"{path.name} (the index does not name it)")
            continue
        try:
            tensors = open_tensors(path)
        except ValueError:
            notes.append(f"{path.name} (not compared:{explain(path) or ' it cannot be read'})")
            continue
        reason = find_contradiction(entries, tensors)
        if reason is not None:
            raise ValueError(
                f"{folder}: {source} and {path.name} hold two models: {reason}. Delete the one that is not meant."
            )
        shared = sum(name in entries for name in tensors)
        if shared or MODEL_NAME.match(path.name):
            notes.append(f"{path.name} ({shared} of {len(entries)} tensors, with the same values)")
    notes += sorted(f"{path.name} (not compared)" for pattern in OTHER_FORMATS for path in folder.glob(pattern))
    if notes:
        message = f"{folder}: the weights of {source} are read, and not {', '.join(notes)}."
        # From this one place, so that a folder that is opened again is not spoken of again.
        warnings.warn(message, stacklevel=1)


def open_tensors(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a file of safetensors or `torch.save`, left on disk.

    Raises:
        ValueError: It cannot be read.
    """
    if path.suffix == ".safetensors":
        return {name: stored_tensor(entry) for name, entry in read_header(path).items()}
    root = open_torch_file(path).root
    if not isinstance(root, Mapping):
        raise ValueError("it holds no tensors by name")
    return {str(name): tensor for name, tensor in root.items() if isinstance(tensor, StoredTensor)}


def find_contradiction(entries: Mapping[str, TensorEntry], others: Mapping[str, StoredTensor]) -> str | None:
    """The first difference between tensors of one name; `None` where there is none."""
    for name, other in others.items():
        if name not in entries:
            continue
        entry = entries[name]
        if tuple(entry.spec.shape) != other.shape:
            return f"{name} has shape {tuple(entry.spec.shape)} in {entry.path.name}, {other.shape} in the other"
        if not have_same_values(stored_tensor(entry), other):
            return f"{name} has other values"
    return None


def have_same_values(first: StoredTensor, second: StoredTensor) -> bool:
    """Whether two tensors of one shape hold the same values, where one may be the other's, rounded."""
    length = first.num_elements
    if length <= SAMPLES * SAMPLE_ELEMENTS or not second.is_contiguous:
        return is_equal(first.load(), second.load())
    starts = [(length - SAMPLE_ELEMENTS) * number // (SAMPLES - 1) for number in range(SAMPLES)]
    return all(is_equal(read_sample(first, start), read_sample(second, start)) for start in starts)


def read_sample(tensor: StoredTensor, start: int) -> Tensor:
    """`SAMPLE_ELEMENTS` elements of a flattened tensor."""
    sample = torch.empty(SAMPLE_ELEMENTS, dtype=tensor.dtype)
    tensor.read_into(start, sample)
    return sample


def is_equal(first: Tensor, second: Tensor) -> bool:
    """Whether values are equal in the type of one of both; not a number equals itself."""
    if first.dtype == second.dtype:
        return bool(((first == second) | ((first != first) & (second != second))).all())
    return any(torch.equal(first.to(kind).double(), second.to(kind).double()) for kind in (first.dtype, second.dtype))
