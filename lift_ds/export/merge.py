"""A base model and its LoRA adapters as one folder, tensor by tensor.

The largest thing in memory is one adapted matrix in float32, twice; everything else goes through in small pieces.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lift_ds.data.text.chat_format import ChatFormat, read_format, stored_template, write_format
from lift_ds.models.families import read_config
from lift_ds.models.weights import check_fit
from lift_ds.storage.safetensors_folder import WEIGHT_TYPES, SafetensorsFolder, shorten
from lift_ds.storage.stored_tensor import Chunked, TensorSpec
from lift_ds.text_files import load_json, read_text

from .folder import MAX_SHARD_BYTES, companions, is_supported, write_config, write_folder, write_json
from .peft_folder import AdapterFolder

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".onnx", ".h5", ".msgpack", ".index.json")


@dataclass(frozen=True)
class Merge:
    """What is merged, checked.

    Args:
        base: The base's weights.
        adapters: The adapters.
        specs: The weights that are written.
        is_own: Whether the base is of a family of ours, and gets our modelling file.
        copied: Names of the base's other files that come along.
        left_out: Names of the base's other files and folders that do not.
        chat_format: What the adapters were taught in, which the merged model is asked in; `None` leaves the base's.
    """

    base: SafetensorsFolder
    adapters: AdapterFolder
    specs: dict[str, TensorSpec]
    is_own: bool
    copied: list[str]
    left_out: list[str]
    chat_format: ChatFormat | None

    def replaced_format(self) -> list[str]:
        """What the base would be asked in otherwise."""
        folder = self.base.folder
        before = read_format(folder) or ChatFormat(template=stored_template(folder))
        differ = [] if self.chat_format is None else before.differences(self.chat_format, "clock")
        return [f"{name}: {theirs}" for name, _, theirs in differ]

    @property
    def num_bytes(self) -> int:
        """Bytes of the weights that are written."""
        return sum(spec.num_bytes for spec in self.specs.values())


def plan_merge(base: Path, adapters: Path, dtype: torch.dtype | None) -> Merge:
    """Reads configs and headers, and checks that base and adapters belong together.

    Args:
        base: Model folder with safetensors; any architecture that keeps its matrices as (out, in).
        adapters: Folder in PEFT's format.
        dtype: Type of the written weights; as stored where not given. Tensors that are no plain weights stay.

    Raises:
        ValueError: A folder cannot be read or merged, or the adapters are of another base.
    """
    source, adapter_folder = SafetensorsFolder(base), AdapterFolder(adapters)
    shapes = source.shapes()
    absent = [name for name in adapter_folder.targets if name not in shapes]
    if absent:
        raise ValueError(f"{adapters} is of another base: {base} has no {shorten(absent)}.")
    made_for = adapter_folder.target_shapes
    wrong = [
        f"{name} {tuple(made_for[name])} for {tuple(shapes[name])}"
        for name in made_for
        if made_for[name] != shapes[name]
    ]
    if wrong:
        raise ValueError(f"{adapters} is of another base: shapes differ from {base}'s: {shorten(wrong)}.")
    quantised = [name for name in adapter_folder.targets if source.entries[name].dtype not in WEIGHT_TYPES]
    if quantised:
        raise ValueError(f"{base}: {shorten(quantised)}: adapters can be merged into unquantised weights only.")
    specs = {
        name: TensorSpec(spec.shape, dtype if dtype and spec.dtype in WEIGHT_TYPES else spec.dtype)
        for name, spec in source.entries.items()
    }
    is_own = is_supported(base)
    if is_own:
        check_fit(read_config(base), base)
    copied, left_out = _files_beside(base, is_own)
    return Merge(source, adapter_folder, specs, is_own, copied, left_out, read_format(adapters))


def _files_beside(base: Path, is_own: bool) -> tuple[list[str], list[str]]:
    """The base's files beside the weights: those that come along, and those that do not and are not made anew."""
    others = [path for path in sorted(base.iterdir()) if not path.name.endswith(WEIGHT_SUFFIXES)]
    wanted = companions(base) if is_own else [path for path in others if path.is_file()]
    left_out = [path.name for path in others if path not in wanted and not (is_own and path.name == "config.json")]
    return [path.name for path in wanted], left_out


@dataclass(frozen=True)
class _AdaptedMatrix(Chunked):
    """A matrix of the base with its adapter added, in float32 or wider."""

    merge: Merge
    name: str

    def chunks(self, size: int) -> Iterator[tuple[int, Tensor]]:
        whole = self.merge.base.tensor(self.name, self.dtype)
        whole = whole.add_(self.merge.adapters.update(self.name)).view(-1)
        for start in range(0, len(whole), size):
            yield start, whole[start : start + size]


def write_merged(merge: Merge, output: Path, dtype: torch.dtype | None, advance: Callable[[int], None]) -> None:
    """Writes the merged folder, under its final name when it is whole.

    `dtype` is as `plan_merge` got it; `advance` is told of bytes as they are written.

    Raises:
        ValueError: `output` exists and holds something.
        RuntimeError: The place cannot be written, or has too little space.
    """
    tensors: dict[str, Chunked] = dict(merge.base.flat())
    for name in merge.adapters.targets:
        computed = torch.promote_types(tensors[name].dtype, torch.float32)
        tensors[name] = _AdaptedMatrix(tensors[name].shape, computed, merge, name)

    def add_files(folder: Path) -> None:
        for name in merge.copied:
            shutil.copyfile(merge.base.folder / name, folder / name)
        finish_config(merge, folder, dtype)
        if merge.chat_format is not None:
            write_format(folder, merge.chat_format)

    def after_chunk(name: str, num_elements: int) -> None:
        advance(num_elements * merge.specs[name].dtype.itemsize)

    write_folder(tensors, merge.specs, output, MAX_SHARD_BYTES, after_chunk, add_files)


def finish_config(merge: Merge, folder: Path, dtype: torch.dtype | None) -> None:
    """Our families' config and modelling file, as every export has them; in others only the type, where it changed."""
    if merge.is_own:
        largest = max(merge.specs.values(), key=lambda spec: spec.num_bytes)
        write_config(merge.base.folder, folder, largest.dtype)
        return
    if dtype is None:
        return
    values = load_json(read_text(folder / "config.json"))
    written = [key for key in ("dtype", "torch_dtype") if key in values] or ["torch_dtype"]
    values |= dict.fromkeys(written, str(dtype).removeprefix("torch."))
    write_json(folder / "config.json", values)
