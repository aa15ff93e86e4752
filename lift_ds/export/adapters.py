"""Low-rank adapters in a checkpoint: merged into their matrices while these are written, or written alone.

    W + (alpha / rank) B A,   A: (rank, in), B: (out, rank)

A is held whole, W and B come by rows, so that a matrix is never in memory.

Checkpoints may leave the base out. One of this package names it by its hash (`storage/frozen_base.py`). One of Hugging
Face's Trainer says in PEFT's `adapter_config.json`, beside the shards, only where it was; Accelerate's holds it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lift_ds.data.text.chat_format import write_format
from lift_ds.storage.flat_groups import FlatTensor, storages_of
from lift_ds.storage.frozen_base import BaseRecord, hash_base, read_base
from lift_ds.storage.run_record import read_run
from lift_ds.storage.safetensors_folder import ADAPTER_CONFIG, SafetensorsFolder
from lift_ds.storage.stored_tensor import Chunked, find_damage
from lift_ds.text_files import load_json, read_text

from .inspection import checkpoint_format, open_inspected
from .names import official_names

if TYPE_CHECKING:
    from peft import LoraConfig

DOWN = re.compile(r"(?P<stem>.+)\.lora_A\.(?:[^.]+\.)?weight")
PART = re.compile(r".+\.lora_[AB]\.(?:[^.]+\.)?weight")
UP_OF = ("lora_A", "lora_B")
BASE_LAYER = ".base_layer"
PATTERNS = ("rank_pattern", "alpha_pattern")
ROOT_PREFIX = "model."  # of the module that the trainer hands to DeepSpeed


@dataclass(frozen=True)
class AdapterSettings:
    """Rank of adapters, and the factor of B A."""

    rank: int
    scale: float


@dataclass(frozen=True)
class MergedMatrix(Chunked):
    """A matrix W with its adapter added, in float32: A is `down` and B is `up`."""

    base: FlatTensor
    down: FlatTensor
    up: FlatTensor
    scale: float

    def chunks(self, size: int) -> Iterator[tuple[int, Tensor]]:
        """See `Chunked`; whole rows."""
        num_rows, width = self.shape
        rank = self.down.shape[0]
        down = self.down.load().float()
        step = max(1, size // width)
        for row in range(0, num_rows, step):
            end = min(row + step, num_rows)
            base = self.base.read(row * width, end * width).float().view(-1, width)
            up = self.up.read(row * rank, end * rank).float().view(-1, rank)
            yield row * width, base + self.scale * (up @ down)


def merge(tensors: dict[str, FlatTensor], settings: AdapterSettings | None) -> dict[str, Chunked]:
    """Tensors by the checkpoint's names, with every adapter merged into its matrix.

    Raises:
        ValueError: There are adapters but no settings, of another rank, or without their matrix.
    """
    downs = [match for name in tensors if (match := DOWN.fullmatch(name))]
    adapters = {match["stem"]: match[0] for match in downs}
    if not adapters:
        return dict(tensors)
    if len(adapters) < len(downs):
        twice = next(match[0] for match in downs if adapters[match["stem"]] != match[0])
        raise ValueError(f"{twice}: several adapters on one matrix; keep the one that is to be merged.")
    if settings is None:
        raise ValueError(
            f"{next(iter(adapters.values()))} and {len(adapters) - 1} more adapters: their rank and alpha are not "
            "known; put PEFT's adapter_config.json beside the shards, or into the folder that --config names."
        )
    merged: dict[str, Chunked] = {}
    parts = {part for down in adapters.values() for part in (down, down.replace(*UP_OF))}
    for name, tensor in tensors.items():
        stem, _, kind = name.rpartition(".")
        owner = stem.removesuffix(BASE_LAYER)
        plain = f"{owner}.{kind}" if owner in adapters else name
        if name in parts:
            continue
        merged[plain] = tensor
        if kind == "weight" and owner in adapters:
            down, up = (tensors.get(part) for part in (adapters[owner], adapters[owner].replace(*UP_OF)))
            merged[plain] = _join(name, tensor, down, up, settings)
    orphans = sorted(stem for stem in adapters if f"{stem}.weight" not in merged)
    if orphans:
        raise ValueError(f"{orphans[0]}: an adapter without its matrix; the base's weights are not in the checkpoint.")
    return merged


def _join(
    name: str, base: FlatTensor, down: FlatTensor | None, up: FlatTensor | None, settings: AdapterSettings
) -> MergedMatrix:
    shapes = [None if part is None else tuple(part.shape) for part in (down, up)]
    expected = [(settings.rank, base.shape[1]), (base.shape[0], settings.rank)]
    if down is None or up is None or shapes != expected:
        raise ValueError(f"{name}: adapter shapes {shapes} where rank {settings.rank} has {expected}.")
    return MergedMatrix(base.shape, torch.float32, base, down, up, settings.scale)


def own_base(own: Path, given: Path | None) -> dict[str, FlatTensor]:
    """The weights that a checkpoint of ours leaves to its base, as given or where it was; none where it holds all.

    Raises:
        ValueError: The base is not found, or not the one that the adapters were trained on.
    """
    record = read_base(own)
    if record is None:
        _refuse_base(given)
        return {}
    folder = given or Path(record.path)
    if not folder.is_dir():
        raise ValueError(f"{own} holds adapters only, and {folder}, their base, is not there; name it with --base.")
    record.check(BaseRecord(str(folder), hash_base(folder)), str(own))
    return {ROOT_PREFIX + name: tensor for name, tensor in SafetensorsFolder(folder).flat().items()}


def strangers_base(weights: Mapping[str, FlatTensor], beside: Path, given: Path | None) -> Path | None:
    """The folder of the base under adapters that stand alone in a stranger's checkpoint; `None` for whole weights.

    It is the given one, or what PEFT's config names, which lies beside the shards.

    Raises:
        ValueError: The base is not found.
    """
    if not all(PART.fullmatch(name) for name in weights):
        _refuse_base(given)
        return None
    if given is not None:
        return given
    config = beside / ADAPTER_CONFIG
    named = load_json(read_text(config)).get("base_model_name_or_path") if config.is_file() else None
    if not named or not Path(named).is_dir():
        where = f"{named}, their base, is no folder here" if named else "nothing says which base they are of"
        raise ValueError(f"{beside} holds adapters only, and {where}; name the base's folder with --base.")
    return Path(named)


def _refuse_base(given: Path | None) -> None:
    if given is not None:
        raise ValueError(f"--base {given}: the checkpoint holds whole weights, not only adapters.")


def adapter_settings(own: Path | None, folders: list[Path]) -> AdapterSettings | None:
    """Rank and scale of adapters: from our run, or from the first of PEFT's files in a stranger's folders.

    Raises:
        ValueError: The file asks for something that is not merged here.
    """
    if own is not None:
        lora = read_run(own)["run"]["lora"]
        return AdapterSettings(lora["rank"], lora["alpha"] / lora["rank"]) if lora["rank"] else None
    path = next((folder / ADAPTER_CONFIG for folder in folders if (folder / ADAPTER_CONFIG).is_file()), None)
    if path is None:
        return None
    from .peft_folder import read_adapter_config

    config = read_adapter_config(path)
    asked = [key for key in PATTERNS if config.get(key)]
    if asked:
        raise ValueError(
            f"{path}: {', '.join(asked)} is not merged here; write the adapters alone (zero_to_hf.py --lora split) and "
            "merge them with merge_lora.py."
        )
    rank, alpha = int(config["r"]), float(config["lora_alpha"])
    return AdapterSettings(rank, alpha / (rank**0.5 if config.get("use_rslora") else rank))


def convert_adapters(path: Path, output: Path) -> Path:
    """Writes the adapters of a checkpoint in PEFT's own format, from their float32 weights.

    A stranger's has `adapter_config.json` beside its shards.

    Returns:
        The checkpoint.

    Raises:
        ValueError: It is not whole, holds no adapters, or nothing says what they are; or `output` is not empty.
        RuntimeError: The place cannot be written, or is full.
    """
    from lift_ds.models import lora

    zero, own = open_inspected(path, is_whole=True)
    parts = {name: tensor for name, tensor in zero.weights().items() if PART.fullmatch(name)}
    damage = find_damage(storages_of(parts)) if own is None else []
    if damage:
        raise ValueError(f"{zero.folder} is not whole: {'; '.join(damage)}.")
    names = official_names(list(parts), None if own is None else ROOT_PREFIX, None)
    _, adapters = lora.split_adapters({names[name]: tensor.load().float() for name, tensor in parts.items()})
    chat_format = None if own is None else checkpoint_format(own)

    def add_files(folder: Path) -> None:
        if chat_format is not None:
            write_format(folder, chat_format)

    lora.save_adapters(adapters, output, described_adapters(own, zero.folder.parent), add_files)
    return own or zero.folder


def described_adapters(own: Path | None, beside: Path) -> LoraConfig:
    """What PEFT is to know of a checkpoint's adapters.

    Raises:
        ValueError: A stranger's checkpoint does not say it.
    """
    from peft import LoraConfig, PeftConfig

    from lift_ds.models.lora import peft_config

    if own is None:
        path = beside / ADAPTER_CONFIG
        if not path.is_file():
            raise ValueError(f"{path} is missing; put the run's there, as PEFT's save_pretrained does.")
        config = PeftConfig.from_pretrained(str(beside))
        if not isinstance(config, LoraConfig):
            raise ValueError(f"{path}: peft_type={config.peft_type}; only LORA is written.")
        return config
    run = read_run(own)["run"]
    base = Path(run["model"]["path"])
    config = peft_config(**run["lora"])
    config.base_model_name_or_path = str(base.resolve() if base.is_dir() else base)
    return config
