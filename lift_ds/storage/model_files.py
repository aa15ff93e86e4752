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
from .safetensors_header import read_header
from .safetensors_writer import SINGLE_FILE
from .stored_tensor import StoredTensor
from .torch_file import open_torch_file

# What PEFT calls its files, and puts in front of the names of weights.
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ADAPTER_PREFIX = "base_model.model."
ADAPTER_FILES = (ADAPTER_CONFIG, ADAPTER_WEIGHTS, "adapter_model.bin")
SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
MODEL_NAME = re.compile(r"(pytorch_)?model")  # how files begin that other tools look for
COMPARABLE = ("*.safetensors", "pytorch_model*.bin")
OTHER_FORMATS = ("*.gguf", "consolidated*.pth", "tf_model*.h5", "flax_model*.msgpack")
SAMPLES, SAMPLE_ELEMENTS = 4, 4096  # of one tensor


def check_one_truth(folder: Path, entries: Mapping[str, StoredTensor], source: str) -> None:
    """Looks at the weight files of a folder beside those that are read; warns of those that do not count.

    Args:
        folder: The folder.
        entries: The tensors that are read.
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
    read = {folder / tensor.storage.path.name for tensor in entries.values()}
    others = sorted({path for pattern in COMPARABLE for path in folder.glob(pattern)} - read)
    notes = []
    for path in others:
        if source != SINGLE_FILE and SHARD.fullmatch(path.name):
            notes.append(f"{path.name} (the index does not name it)")
            continue
        try:
            tensors = _open_tensors(path)
        except ValueError:
            notes.append(f"{path.name} (not compared:{explain(path) or ' it cannot be read'})")
            continue
        reason = _find_contradiction(entries, tensors)
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


def _open_tensors(path: Path) -> dict[str, StoredTensor]:
    if path.suffix == ".safetensors":
        return read_header(path)
    root = open_torch_file(path).root
    if not isinstance(root, Mapping):
        raise ValueError("it holds no tensors by name")
    return {str(name): tensor for name, tensor in root.items() if isinstance(tensor, StoredTensor)}


def _find_contradiction(entries: Mapping[str, StoredTensor], others: Mapping[str, StoredTensor]) -> str | None:
    for name in (name for name in others if name in entries):
        read, other = entries[name], others[name]
        if read.shape != other.shape:
            shapes = tuple(read.shape), tuple(other.shape)
            return f"{name} has shape {shapes[0]} in {read.storage.path.name}, {shapes[1]} in the other"
        if not _have_same_values(read, other):
            return f"{name} has other values"
    return None


def _have_same_values(first: StoredTensor, second: StoredTensor) -> bool:
    """Whether two tensors of one shape hold the same values, where one may be the other's, rounded."""
    length = first.num_elements
    if length <= SAMPLES * SAMPLE_ELEMENTS or not second.is_contiguous:
        return _is_equal(first.load(), second.load())
    starts = [(length - SAMPLE_ELEMENTS) * number // (SAMPLES - 1) for number in range(SAMPLES)]
    ranges = [(start, start + SAMPLE_ELEMENTS) for start in starts]
    return all(_is_equal(first.read(*sample), second.read(*sample)) for sample in ranges)


def _is_equal(first: Tensor, second: Tensor) -> bool:
    """Whether values are equal in the type of one of both; not a number equals itself."""
    if first.dtype == second.dtype:
        return bool(((first == second) | ((first != first) & (second != second))).all())
    return any(torch.equal(first.to(kind).double(), second.to(kind).double()) for kind in (first.dtype, second.dtype))
