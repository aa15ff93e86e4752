"""Low-rank adapters in a checkpoint, merged into their matrices while these are written.

    W + (alpha / rank) B A,   A: (rank, in), B: (out, rank)

A is held whole, W and B come by rows, so that a matrix is never in memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lift_ds.storage.flat_groups import FlatTensor

DOWN = re.compile(r"(?P<stem>.+)\.lora_A\.(?:[^.]+\.)?weight")
PART = re.compile(r".+\.lora_[AB]\.(?:[^.]+\.)?weight")
UP_OF = ("lora_A", "lora_B")
BASE_LAYER = ".base_layer"
PATTERNS = ("rank_pattern", "alpha_pattern")


@dataclass(frozen=True)
class AdapterSettings:
    """How strongly adapters count.

    Args:
        rank: Their rank.
        alpha: Their scale; the update is multiplied by alpha / rank.
        uses_root: Divide by the root of the rank instead (PEFT's `use_rslora`).
    """

    rank: int
    alpha: float
    uses_root: bool = False

    @property
    def scale(self) -> float:
        """Factor of B A."""
        return self.alpha / (self.rank**0.5 if self.uses_root else self.rank)


@dataclass(frozen=True)
class MergedMatrix:
    """A matrix with its adapter added.

    Args:
        base: The matrix W.
        down: The adapter's A.
        up: The adapter's B.
        scale: Factor of B A.
    """

    base: FlatTensor
    down: FlatTensor
    up: FlatTensor
    scale: float

    @property
    def shape(self) -> torch.Size:
        """That of W."""
        return self.base.shape

    @property
    def dtype(self) -> torch.dtype:
        """It is computed in float32."""
        return torch.float32

    def chunks(self, size: int) -> Iterator[tuple[int, Tensor]]:
        """Whole rows, about `size` elements at a time."""
        num_rows, width = self.shape
        rank = self.down.shape[0]
        down = self.down.load().float()
        step = max(1, size // width)
        for row in range(0, num_rows, step):
            end = min(row + step, num_rows)
            base = self.base.read(row * width, end * width).float().view(-1, width)
            up = self.up.read(row * rank, end * rank).float().view(-1, rank)
            yield row * width, base + self.scale * (up @ down)


def settings_of_peft(path: Path) -> AdapterSettings:
    """Settings from PEFT's `adapter_config.json`.

    Raises:
        ValueError: It cannot be read, or asks for something that is not merged here.
    """
    from .peft_folder import read_adapter_config

    config = read_adapter_config(path)
    asked = [key for key in PATTERNS if config.get(key)]
    if asked:
        raise ValueError(
            f"{path}: {', '.join(asked)} is not merged here; write the adapters alone (zero_to_hf.py --lora split) and "
            "merge them with merge_lora.py."
        )
    return AdapterSettings(int(config["r"]), float(config["lora_alpha"]), bool(config.get("use_rslora")))


def merge(tensors: dict[str, FlatTensor], settings: AdapterSettings | None) -> dict[str, FlatTensor | MergedMatrix]:
    """Tensors with every adapter merged into its matrix.

    Args:
        tensors: Everything by the checkpoint's names.
        settings: The adapters' rank and scale; `None` where none are expected.

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
    merged: dict[str, FlatTensor | MergedMatrix] = {}
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
            merged[plain] = join(name, tensor, down, up, settings)
    orphans = sorted(stem for stem in adapters if f"{stem}.weight" not in merged)
    if orphans:
        raise ValueError(f"{orphans[0]}: an adapter without its matrix; the base's weights are not in the checkpoint.")
    return merged


def join(
    name: str, base: FlatTensor, down: FlatTensor | None, up: FlatTensor | None, settings: AdapterSettings
) -> MergedMatrix:
    """One matrix and its adapter.

    Raises:
        ValueError: Their shapes do not fit.
    """
    shapes = [None if part is None else tuple(part.shape) for part in (down, up)]
    expected = [(settings.rank, base.shape[1]), (base.shape[0], settings.rank)]
    if down is None or up is None or shapes != expected:
        raise ValueError(f"{name}: adapter shapes {shapes} where rank {settings.rank} has {expected}.")
    return MergedMatrix(base, down, up, settings.scale)
