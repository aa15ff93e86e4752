"""Low-rank adapters in a checkpoint, merged into their matrices while these are written.

    W + (alpha / rank) B A,   A: (rank, in), B: (out, rank)

A is held whole, W and B come by rows, so that a matrix is never in memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lift_ds.storage.flat_groups import FlatTensor
from lift_ds.storage.stored_tensor import Chunked

DOWN = re.compile(r"(?P<stem>.+)\.lora_A\.(?:[^.]+\.)?weight")
PART = re.compile(r".+\.lora_[AB]\.(?:[^.]+\.)?weight")
UP_OF = ("lora_A", "lora_B")
BASE_LAYER = ".base_layer"


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
