"""A ZeRO checkpoint, or the mean of several, as a Hugging Face folder, a chunk at a time.

Memory does not grow with the model.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lift_ds.data.text.chat_format import ChatFormat, write_format
from lift_ds.storage.flat_groups import FlatTensor, storages_of
from lift_ds.storage.manifest import HF_FOLDER
from lift_ds.storage.run_record import read_run
from lift_ds.storage.safetensors_file import plan_shards
from lift_ds.storage.safetensors_folder import SafetensorsFolder
from lift_ds.storage.stored_tensor import Chunked, Storage, find_damage
from lift_ds.storage.zero_checkpoint import ZeroCheckpoint

from .adapters import DOWN, AdapterSettings, MergedMatrix, adapter_settings, merge, own_base, strangers_base
from .card import model_card, read_metadata
from .folder import DTYPES, MAX_SHARD_BYTES, export_tensors, official_shapes, written_specs
from .inspection import checkpoint_format, open_inspected
from .names import official_names


@dataclass(frozen=True)
class ConversionOptions:
    """What a user may ask for.

    Args:
        dtype: A key of `DTYPES`, or `auto` for what the run computed in.
        max_shard_bytes: Most bytes of weights in a file.
        config: Folder with config and tokenizer; `None` takes those that came with the checkpoint.
        weights_only: Write no config and no tokenizer.
        prefix: Prefix to take off the names; `None` finds it.
        base_code: Folder whose `.py` files are copied too.
        base: Folder of the base under adapters that stand alone; `None` looks where it was.
    """

    dtype: str = "auto"
    max_shard_bytes: int = MAX_SHARD_BYTES
    config: Path | None = None
    weights_only: bool = False
    prefix: str | None = None
    base_code: Path | None = None
    base: Path | None = None


@dataclass(frozen=True)
class Conversion:
    """A conversion that was found to be possible; nothing is written yet.

    Args:
        zero: The shards.
        own: The checkpoint of this package around them, or `None` for a stranger's.
        hf_folder: Config and tokenizer, or `None` where only weights are written.
        tensors: What is written, by official name.
        dtype: Type of floating-point weights, a key of `DTYPES`.
        options: What was asked for.
        checked: Storages whose CRC is still to be compared; empty where a manifest was.
        chat_format: What the model was taught in, where the checkpoint says it.
        averaged: Steps of the checkpoints whose mean is written; empty for a single one.
    """

    zero: ZeroCheckpoint
    own: Path | None
    hf_folder: Path | None
    tensors: Mapping[str, Chunked]
    dtype: str
    options: ConversionOptions
    checked: tuple[Storage, ...]
    chat_format: ChatFormat | None
    averaged: tuple[int, ...] = ()

    def summary(self) -> dict[str, Any]:
        """Figures and facts, flat."""
        specs = written_specs(self.tensors, self.hf_folder, DTYPES[self.dtype])
        return {
            "checkpoint": str(self.own or self.zero.folder),
            "step": self.zero.step,
            "zero_stage": self.zero.stage,
            "world_size": self.zero.world_size,
            "dtype": self.dtype,
            "num_tensors": len(specs),
            "num_parameters": sum(spec.num_elements for spec in specs.values()),
            "num_merged_adapters": sum(isinstance(tensor, MergedMatrix) for tensor in self.tensors.values()),
            "num_bytes": sum(spec.num_bytes for spec in specs.values()),
            "num_files": len(plan_shards(specs, self.options.max_shard_bytes)),
        } | ({"averaged_steps": ", ".join(map(str, self.averaged))} if self.averaged else {})

    def write(self, output: Path, after_chunk: Callable[[int], object] = lambda num_elements: None) -> None:
        """Writes the folder; shards of a stranger's checkpoint are checked by their CRCs meanwhile.

        Args:
            output: Folder to create.
            after_chunk: Called with the number of elements of each chunk that was written.

        Raises:
            ValueError: A shard has changed since it was written, or `output` exists; no folder is left.
            RuntimeError: The place cannot be written, or is full.
        """
        with ThreadPoolExecutor(1) as pool:
            damage = pool.submit(find_damage, self.checked)

            run = None if self.own is None or self.hf_folder is None else read_run(self.own)

            def add_files(folder: Path) -> None:
                if self.chat_format is not None:
                    write_format(folder, self.chat_format)
                for path in sorted(self.options.base_code.glob("*.py")) if self.options.base_code else []:
                    shutil.copyfile(path, folder / path.name)
                if self.hf_folder is not None:
                    card = model_card(self.summary(), run, self.chat_format, read_metadata(self.hf_folder))
                    (folder / "README.md").write_text(card, encoding="utf-8")
                if damage.result():
                    raise ValueError(f"{'; '.join(damage.result())}: copy the checkpoint again or take another.")

            dtype, max_shard_bytes = DTYPES[self.dtype], self.options.max_shard_bytes
            export_tensors(self.tensors, self.hf_folder, output, dtype, max_shard_bytes, after_chunk, add_files)


def prepare_conversion(path: Path, options: ConversionOptions) -> Conversion:
    """Opens a run, a checkpoint or a folder with ZeRO shards, and settles what will be written.

    No weights are read but to check our own manifest.

    Raises:
        ValueError: The checkpoint is not whole, or does not fit the config.
    """
    zero, own = open_inspected(path, is_whole=True)
    beside = zero.folder.parent
    weights, prefix, base = zero.weights(), options.prefix, None
    checked = storages_of(weights) if own is None else ()
    if own is not None:
        weights = own_base(own, options.base) | weights
    elif base := strangers_base(weights, beside, options.base):
        named = official_names(list(weights), prefix, None)
        weights = SafetensorsFolder(base).flat() | {named[name]: tensor for name, tensor in weights.items()}
        prefix = ""
    hf_folder = None if options.weights_only else _find_config(beside, own, options.config or base)
    official = None if hf_folder is None else official_shapes(hf_folder)
    settings = adapter_settings(own, [beside, *([] if hf_folder is None else [hf_folder])])
    tensors = _name_tensors(weights, zero.aliases, settings, prefix, official)
    dtype = _computed_dtype(zero) if options.dtype == "auto" else options.dtype
    chat_format = None if own is None or hf_folder is None else checkpoint_format(own)
    return Conversion(zero, own, hf_folder, tensors, dtype, options, checked, chat_format)


def _find_config(beside: Path, own: Path | None, given: Path | None) -> Path:
    folder = given or (beside if own is None else own / HF_FOLDER)
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"{folder}: no config.json. Name the folder with the model's config and tokenizer (--config), or ask for "
            "weights only (--weights-only)."
        )
    return folder


def _computed_dtype(zero: ZeroCheckpoint) -> str:
    """What the run computed in, by the DeepSpeed configuration that its shards carry."""
    config = zero.optimizer_files[0].root.get("ds_config") or {}
    sections = {"bf16": "bfloat16", "bfloat16": "bfloat16", "fp16": "float16"}
    enabled = [dtype for key, dtype in sections.items() if (config.get(key) or {}).get("enabled") is True]
    return enabled[0] if enabled else "float32"


def _name_tensors(
    weights: Mapping[str, FlatTensor],
    tied_names: Mapping[str, str],
    settings: AdapterSettings | None,
    prefix: str | None,
    official: Mapping[str, Any] | None,
) -> dict[str, Chunked]:
    """What is written, by official name: adapters merged, wrappers taken off.

    A tied tensor is written under each of its names, except where the names of the config's model are known.
    """
    tied = {alias: weights[name] for alias, name in tied_names.items() if name in weights and not DOWN.fullmatch(name)}
    tensors = merge({**weights, **tied}, settings)
    expected = None if official is None else set(official)
    names = official_names(list(tensors), prefix, expected)
    aliases = {names[alias]: names[name] for alias, name in tied_names.items() if alias in names and name in names}
    named = {names[name]: tensor for name, tensor in tensors.items()}
    if expected is not None:
        for pair in aliases.items():
            for unexpected in [tied_name for tied_name in pair if tied_name not in expected][:1]:
                named.pop(unexpected, None)
    return named


@dataclass(frozen=True)
class _Mean(Chunked):
    """The mean of tensors of one shape, in float32, summed in float64."""

    tensors: tuple[Chunked, ...]

    def chunks(self, size: int) -> Iterator[tuple[int, Tensor]]:
        for chunks in zip(*(tensor.chunks(size) for tensor in self.tensors), strict=True):
            total = sum((chunk.double() for _, chunk in chunks[1:]), chunks[0][1].double())
            yield chunks[0][0], (total / len(chunks)).float()


def _mean(tensors: tuple[Chunked, ...]) -> Chunked:
    """Of what is no floating-point tensor, the first."""
    first = tensors[0]
    return _Mean(first.shape, torch.float32, tensors) if first.dtype.is_floating_point else first


def prepare_average(paths: Sequence[Path], options: ConversionOptions) -> Conversion:
    """A conversion that writes the mean of checkpoints under the first one's config; see `prepare_conversion`.

    Raises:
        ValueError: There are fewer than two, one is not whole, or their tensors are not the same.
    """
    if len(paths) < 2:
        raise ValueError(f"{len(paths)} checkpoint given; an average needs at least two.")
    conversions = [prepare_conversion(path, options) for path in paths]
    first = conversions[0]
    expected = {name: tensor.shape for name, tensor in first.tensors.items()}
    for path, conversion in zip(paths, conversions, strict=True):
        if {name: tensor.shape for name, tensor in conversion.tensors.items()} != expected:
            raise ValueError(f"{path}: its tensors are not those of {paths[0]}; only one model can be averaged.")
        taught, other = first.chat_format, conversion.chat_format
        differ = [] if taught is None or other is None else taught.differences(other, "clock")
        if differ:
            names = ", ".join(name for name, _, _ in differ)
            raise ValueError(f"{path}: was taught in another chat format than {paths[0]} ({names}); one is needed.")
    tensors = {name: _mean(tuple(conversion.tensors[name] for conversion in conversions)) for name in expected}
    checked = tuple(storage for conversion in conversions for storage in conversion.checked)
    return replace(
        first, tensors=tensors, checked=checked, averaged=tuple(conversion.zero.step for conversion in conversions)
    )
