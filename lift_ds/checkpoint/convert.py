"""A ZeRO checkpoint as a Hugging Face folder, a chunk at a time: memory does not grow with the model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lift_ds.models.export import (
    DTYPES,
    MAX_SHARD_BYTES,
    Chunked,
    ExportOptions,
    export_tensors,
    official_shapes,
    written_spec,
)
from lift_ds.models.shards import plan_shards

from .adapters import DOWN, AdapterSettings, MergedMatrix, merge, settings_of_peft
from .base import base_tensors, read_base
from .card import model_card
from .flat_layout import FlatTensor
from .manifest import find_faults, read_manifest
from .names import official_names
from .stored_tensor import Storage
from .zero_checkpoint import ZeroCheckpoint, open_zero_checkpoint
from .zero_files import find_shard_folder, own_checkpoint

ADAPTER_CONFIG = "adapter_config.json"
ROOT_PREFIX = "model."  # of the module that the trainer hands to DeepSpeed


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
        base: Folder of the base under the adapters of our checkpoint; `None` looks where it was.
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
        averaged: Steps of the checkpoints whose mean is written; empty for a single one.
    """

    zero: ZeroCheckpoint
    own: Path | None
    hf_folder: Path | None
    tensors: Mapping[str, Chunked]
    dtype: str
    options: ConversionOptions = field(default_factory=ConversionOptions)
    checked: tuple[Storage, ...] = ()
    averaged: tuple[int, ...] = ()

    def summary(self) -> dict[str, Any]:
        """Figures and facts, flat."""
        specs = {name: written_spec(tensor, DTYPES[self.dtype]) for name, tensor in self.tensors.items()}
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
            **({"averaged_steps": ", ".join(map(str, self.averaged))} if self.averaged else {}),
        }

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

            def finish_check(folder: Path) -> None:
                if damage.result():
                    raise ValueError(f"{'; '.join(damage.result())}: copy the checkpoint again or take another.")

            options = ExportOptions(
                DTYPES[self.dtype],
                self.options.max_shard_bytes,
                None
                if self.hf_folder is None
                else model_card(self.summary(), None if self.own is None else read_run(self.own)),
                self.options.base_code,
                after_chunk,
                finish_check,
            )
            export_tensors(self.tensors, self.hf_folder, output, options)


def prepare_conversion(path: Path, options: ConversionOptions) -> Conversion:
    """Opens a checkpoint and settles what will be written; reads no weights but to check our own manifest.

    Args:
        path: A run, a checkpoint or a folder with ZeRO shards.
        options: What is asked for.

    Raises:
        ValueError: The checkpoint is not whole, or does not fit the config.
    """
    shards = find_shard_folder(path)
    own = own_checkpoint(shards)
    if own is not None:
        faults = find_faults(own, read_manifest(own))
        if faults:
            raise ValueError(f"{own} is not whole: {'; '.join(faults)}.")
    zero = open_zero_checkpoint(shards)
    hf_folder = None if options.weights_only else find_config(shards, own, options.config)
    official = None if hf_folder is None else official_shapes(hf_folder)
    weights = find_base(own, options.base) | zero.weights()
    settings = adapter_settings(own, hf_folder or shards.parent)
    tensors = name_tensors(weights, zero.aliases, settings, options.prefix, official)
    dtype = computed_dtype(zero) if options.dtype == "auto" else options.dtype
    return Conversion(zero, own, hf_folder, tensors, dtype, options, used_storages(zero) if own is None else ())


def convert_adapters(checkpoint: Path, output: Path) -> None:
    """Writes the adapters of a whole checkpoint of this package in PEFT's own format.

    Args:
        checkpoint: `.../checkpoints/step-NNNNNN` of a run with LoRA.
        output: Folder to create.

    Raises:
        ValueError: It holds no adapters, or `output` is not empty.
        RuntimeError: The place cannot be written, or is full.
    """
    from lift_ds.models import lora  # peft is slow to import

    faults = find_faults(checkpoint, read_manifest(checkpoint))
    if faults:
        raise ValueError(f"{checkpoint} is not whole: {'; '.join(faults)}.")
    run = read_run(checkpoint)["run"]
    weights = open_zero_checkpoint(find_shard_folder(checkpoint)).weights()
    adapters = {
        name.removeprefix(ROOT_PREFIX): tensor.load().float()
        for name, tensor in weights.items()
        if name.endswith((lora.DOWN, lora.UP))
    }
    base = Path(run["model"]["path"])
    base_path = str(base.resolve() if base.is_dir() else base)
    lora.write_adapters(lora.split_adapters(adapters)[1], output, **run["lora"], base_path=base_path)


def find_config(shards: Path, own: Path | None, given: Path | None) -> Path:
    """The folder with config and tokenizer.

    Raises:
        ValueError: There is none.
    """
    beside = own / "hf" if own is not None else shards.parent
    folder = beside if given is None else given
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"{folder}: no config.json. Name the folder with the model's config and tokenizer (--config), or ask for "
            "weights only (--weights-only)."
        )
    return folder


def find_base(own: Path | None, given: Path | None) -> dict[str, FlatTensor]:
    """The weights that a checkpoint of adapters leaves to its base, by its names; none where it holds all.

    Raises:
        ValueError: The base is not found, or not the one that the adapters were trained on.
    """
    record = None if own is None else read_base(own)
    if own is None or record is None:
        if given is not None:
            raise ValueError(f"--base {given}: the checkpoint holds whole weights, not only adapters.")
        return {}
    folder = given or Path(record.path)
    if not folder.is_dir():
        raise ValueError(f"{own} holds adapters only, and {folder}, their base, is not there; name it with --base.")
    return {ROOT_PREFIX + name: tensor for name, tensor in base_tensors(record, folder, str(own)).items()}


def read_run(own: Path) -> dict[str, Any]:
    """The run that wrote a checkpoint of ours."""
    return dict(json.loads((own / "run.json").read_text(encoding="utf-8")))


def adapter_settings(own: Path | None, folder: Path) -> AdapterSettings | None:
    """Rank and scale of adapters: from our run, or from PEFT's file beside a stranger's config."""
    if own is not None:
        lora = read_run(own)["run"]["lora"]
        return AdapterSettings(lora["rank"], lora["alpha"]) if lora["rank"] else None
    path = folder / ADAPTER_CONFIG
    if not path.is_file():
        return None
    return settings_of_peft(json.loads(path.read_text(encoding="utf-8")), str(path))


def computed_dtype(zero: ZeroCheckpoint) -> str:
    """What the run computed in, by the DeepSpeed configuration that its shards carry."""
    config = zero.optimizer_files[0].root.get("ds_config") or {}
    sections = {"bf16": "bfloat16", "bfloat16": "bfloat16", "fp16": "float16"}
    enabled = [dtype for key, dtype in sections.items() if (config.get(key) or {}).get("enabled") is True]
    return enabled[0] if enabled else "float32"


def name_tensors(
    weights: Mapping[str, FlatTensor],
    tied_names: Mapping[str, str],
    settings: AdapterSettings | None,
    prefix: str | None,
    official: Mapping[str, Any] | None,
) -> dict[str, Chunked]:
    """What is written, by official name: adapters merged, wrappers taken off.

    A tied tensor is written under each of its names, except where the names of the config's model are known.

    Raises:
        ValueError: Names become the same, or adapters cannot be merged.
    """
    tied = {alias: weights[name] for alias, name in tied_names.items() if name in weights and not DOWN.fullmatch(name)}
    tensors = merge({**weights, **tied}, settings)
    expected = None if official is None else set(official)
    names = official_names(list(tensors), prefix, expected)
    aliases = {names[alias]: names[name] for alias, name in tied_names.items() if alias in names and name in names}
    named: dict[str, Chunked] = {names[name]: tensor for name, tensor in tensors.items()}
    if expected is not None:
        for alias, name in aliases.items():
            unwanted = [each for each in (alias, name) if each not in expected]
            for each in unwanted[:1]:
                named.pop(each, None)
    return named


def used_storages(zero: ZeroCheckpoint) -> tuple[Storage, ...]:
    """Every storage that a conversion reads."""
    return tuple({piece.tensor.storage: None for tensor in zero.weights().values() for piece in tensor.pieces})


def find_damage(storages: Iterable[Storage]) -> list[str]:
    """Which storages are not what was written."""
    return sorted({f"{each.path} has changed (checksum)" for each in storages if not each.has_valid_crc()})
