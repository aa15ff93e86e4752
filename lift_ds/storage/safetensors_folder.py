"""Weights in a folder of safetensors, read by exact byte ranges.

Nothing is mapped and nothing is read twice: a range of a tensor goes from the file straight into the memory that it is
for, or through one small piece where the type differs or the memory is an accelerator's.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from lift_ds.text_files import load_json, read_text

from .file_diagnosis import explain
from .flat_groups import FlatTensor, whole
from .model_files import ADAPTER_WEIGHTS, check_one_truth
from .safetensors_header import read_header
from .safetensors_writer import INDEX_FILE, SINGLE_FILE
from .stored_tensor import StoredTensor, TensorSpec

PIECE_BYTES = 8 << 20
WEIGHT_TYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
LISTED_KEYS = 8


class SafetensorsFolder:
    """A folder with `model.safetensors`, or shards and their index.

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
        """Reads and checks the index and all headers; no data."""
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
            check_one_truth(folder, self.entries, INDEX_FILE if index is not None else SINGLE_FILE)

    def shapes(self) -> dict[str, torch.Size]:
        """Shapes, in the order of the files."""
        return {key: spec.shape for key, spec in self.specs().items()}

    def specs(self) -> dict[str, TensorSpec]:
        """Shapes and types, in the order of the files."""
        return {key: entry.spec for key, entry in self.entries.items()}

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
