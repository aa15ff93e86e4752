"""Weights in a folder of safetensors, read by exact byte ranges, and whether the folder tells one story.

Nothing is mapped and nothing is read twice: a range of a tensor goes from the file straight into the memory that it is
for, or through one small piece where the type differs or the memory is an accelerator's.

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

from lift_ds.text_files import load_json, read_text

from .file_diagnosis import explain
from .flat_groups import FlatTensor, whole
from .safetensors_file import INDEX_FILE, SINGLE_FILE, read_header
from .stored_tensor import StoredTensor
from .torch_file import open_torch_file

PIECE_BYTES = 8 << 20
WEIGHT_TYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
LISTED_KEYS = 8
# What PEFT calls its files, and puts in front of the names of weights.
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ADAPTER_PREFIX = "base_model.model."
ADAPTER_FILES = (ADAPTER_CONFIG, ADAPTER_WEIGHTS, "adapter_model.bin")
SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
MODEL_NAME = re.compile(r"(pytorch_)?model")  # how files begin that other tools look for
COMPARABLE = ("*.safetensors", "pytorch_model*.bin")
OTHER_FORMATS = ("*.gguf", "consolidated*.pth", "tf_model*.h5", "flax_model*.msgpack")
SAMPLES, SAMPLE_ELEMENTS = 4, 4096  # of one tensor


class SafetensorsFolder:
    """A folder with `model.safetensors`, or shards and their index; index and headers are read and checked, no data.

    Args:
        folder: The folder.
        only: Name of a single file to read instead.

    Attributes:
        entries: The tensors, left on disk, in the order of the files.

    Raises:
        ValueError: There are no safetensors, the index or a header cannot be read, a shard that the index names is
            missing, the index and the shards do not agree, or another file in the folder contradicts them.
    """

    def __init__(self, folder: Path, only: str | None = None) -> None:
        self.folder = folder
        index = None if only else read_index(folder)
        names = [only or SINGLE_FILE] if index is None else sorted(set(index.values()))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise ValueError(f"{folder}: {shorten(missing)} missing; {_what_to_do(folder, index is not None)}.")
        headers = {name: read_header(folder / name) for name in names}
        self.entries: dict[str, StoredTensor] = {}
        for header in headers.values():
            self.entries |= header
        if index is not None:
            stored = {(key, name) for name, header in headers.items() for key in header}
            wrong = sorted({key for key, _ in stored ^ set(index.items())})
            if wrong:
                raise ValueError(
                    f"{folder / INDEX_FILE} and its files do not agree on {shorten(wrong)}. Fetch it again."
                )
        if only is None:
            _check_one_truth(folder, self.entries, INDEX_FILE if index is not None else SINGLE_FILE)

    def shapes(self) -> dict[str, torch.Size]:
        """Shapes, in the order of the files."""
        return {key: stored.shape for key, stored in self.entries.items()}

    def flat(self) -> dict[str, FlatTensor]:
        """The tensors as those of a checkpoint are, left on disk."""
        return {key: whole(stored) for key, stored in self.entries.items()}

    def tensor(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """A whole tensor in memory of its own, as stored or rounded to `dtype`."""
        stored = self.entries[name]
        loaded = torch.empty(stored.shape, dtype=dtype or stored.dtype)
        self.read(name, loaded.view(-1))
        return loaded

    def read(self, name: str, into: Tensor, start: int = 0) -> None:
        """Fills `into`, a flat tensor of any type and device, with the elements from `start` of a flattened tensor.

        Raises:
            ValueError: Its stored type is not one of plain weights, and another one is wanted.
            RuntimeError: The file became shorter since its header was read.
        """
        stored = self.entries[name]
        if into.dtype != stored.dtype and stored.dtype not in WEIGHT_TYPES:
            kind, *allowed = (str(known).removeprefix("torch.") for known in (stored.dtype, *WEIGHT_TYPES))
            raise ValueError(
                f"{stored.storage.path}: {name} is stored as {kind}; allowed: {', '.join(allowed)}. Use unquantised "
                "weights."
            )
        if into.dtype == stored.dtype and into.device.type == "cpu":
            stored.read_into(start, into)
            return
        piece = torch.empty(min(into.numel(), PIECE_BYTES // stored.dtype.itemsize), dtype=stored.dtype)
        for part in into.split(max(len(piece), 1)):
            stored.read_into(start, piece[: len(part)])
            part.copy_(piece[: len(part)])
            start += len(part)


def read_index(folder: Path) -> dict[str, str] | None:
    """Which file holds each tensor, or `None` where the folder has no index.

    Raises:
        ValueError: It is no index, or names files outside the folder.
    """
    path = folder / INDEX_FILE
    if not path.is_file():
        return None
    try:
        index = load_json(read_text(path))["weight_map"]
        outside = [name for name in index.values() if Path(name).name != name]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        reason = f"({type(error).__name__}: {error}).{explain(path)}"
        raise ValueError(f"{path}: no readable index {reason} Fetch it again.") from error
    if outside:
        raise ValueError(f"{path}: {shorten(outside)}: only names of files in the same folder are allowed.")
    return index


def _what_to_do(folder: Path, has_index: bool) -> str:
    if has_index and (folder / SINGLE_FILE).is_file():
        return f"fetch it again, or delete {INDEX_FILE} to read {SINGLE_FILE}"
    if not has_index and (folder / ADAPTER_WEIGHTS).is_file():
        return "it holds adapters, no model: name their base as the model, or merge both with tools/merge_lora.py"
    if not has_index and any(folder.glob("model*.safetensors")):
        return f"there are shards, but {INDEX_FILE} does not say how they belong together; fetch it again"
    return "weights are read from safetensors only"


def shorten(keys: list[str]) -> str:
    """The first keys of a list."""
    more = f", and {len(keys) - LISTED_KEYS} more" if len(keys) > LISTED_KEYS else ""
    return ", ".join(keys[:LISTED_KEYS]) + more


def _check_one_truth(folder: Path, entries: Mapping[str, StoredTensor], source: str) -> None:
    """Looks at weight files beside those of `source`, an index or single file; warns of those that do not count."""
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
