"""What a checkpoint holds, whether it is whole, what its numbers look like, and how two of them differ."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from lift_ds.storage.flat_groups import FlatTensor
from lift_ds.storage.manifest import DIFFICULTY_FOLDER, LANES_FILE, find_faults, read_manifest, require_whole
from lift_ds.storage.run_record import read_run
from lift_ds.storage.stored_tensor import CHUNK_ELEMENTS, find_damage
from lift_ds.storage.zero_checkpoint import MOMENTS, ZeroCheckpoint, open_zero_checkpoint, optimizer_step
from lift_ds.storage.zero_files import find_shard_folder, own_checkpoint
from lift_ds.text_files import load_json, read_text

Advance = Callable[[int], object]


@dataclass(frozen=True)
class Statistics:
    """Sums over a tensor: of its finite squares, in float64, its largest finite magnitude, and its NaN and infinities.

    Added, they are those of both tensors together.
    """

    square_sum: float = 0.0
    largest: float = 0.0
    num_not_finite: int = 0

    @property
    def norm(self) -> float:
        """Euclidean norm of the finite elements."""
        return math.sqrt(self.square_sum)

    def __add__(self, other: Statistics) -> Statistics:
        return Statistics(
            self.square_sum + other.square_sum,
            max(self.largest, other.largest),
            self.num_not_finite + other.num_not_finite,
        )


def open_inspected(path: Path) -> tuple[ZeroCheckpoint, Path | None]:
    """The shards of a checkpoint, and the checkpoint of ours around them, if any.

    Raises:
        ValueError: The shards are missing, damaged, or do not fit each other.
    """
    shards = find_shard_folder(path)
    return open_zero_checkpoint(shards), own_checkpoint(shards)


def open_whole(path: Path) -> tuple[ZeroCheckpoint, Path | None]:
    """As `open_inspected`, after every byte of a checkpoint of ours was compared with its manifest.

    Raises:
        ValueError: It is not whole; or as in `open_inspected`.
    """
    own = own_checkpoint(find_shard_folder(path))
    if own is not None:
        require_whole(own)
    return open_inspected(path)


def describe(zero: ZeroCheckpoint, own: Path | None) -> dict[str, Any]:
    """Facts that need no weights to be read."""
    trained, frozen = zero.trained(), zero.frozen
    facts: dict[str, Any] = {
        "checkpoint": str(own or zero.folder),
        "step": zero.step,
        "optimizer_step": max(optimizer_step(zero.optimizer_files[0]), default=0.0),
        "zero_stage": zero.stage,
        "world_size": zero.world_size,
        "deepspeed_version": zero.model_state.get("ds_version"),
        "num_trained": sum(tensor.num_elements for tensor in trained.values()),
        "num_frozen": sum(tensor.num_elements for tensor in frozen.values()),
        "num_trained_tensors": len(trained),
        "num_frozen_tensors": len(frozen),
        "num_buffers": len(zero.buffers),
        "num_tied": len(zero.aliases),
        "num_flat_groups": len(zero.groups),
        "num_bytes": sum(path.stat().st_size for path in zero.folder.iterdir() if path.is_file()),
    }
    return facts if own is None else facts | describe_own(own)


def describe_own(own: Path) -> dict[str, Any]:
    """What a checkpoint of this package says of its run and of its data's position."""
    run = read_run(own)["run"]
    data = load_json(read_text(own / LANES_FILE))
    return {
        "base": run["model"]["path"],
        "objective": run["objective"]["method"],
        "steps_planned": run["optim"]["steps"],
        "data_files": ", ".join(data["manifest"]["files"]),
        "data_position": json.dumps(data["lanes"]),
        "difficulty_files": len(list((own / DIFFICULTY_FOLDER).glob("rank-*.safetensors"))),
    }


def find_problems(zero: ZeroCheckpoint, own: Path | None) -> list[str]:
    """What is not as it was written: by the manifest of ours, else by the CRCs of every tensor."""
    if own is not None:
        return find_faults(own, read_manifest(own))
    files = [*zero.optimizer_files, *zero.model_files]
    return find_damage([storage for file in files for storage in file.storages.values()])


def named_tensors(zero: ZeroCheckpoint, with_moments: bool) -> dict[str, FlatTensor]:
    """Weights by name, and the optimizer's moments as `NAME (exp_avg)`."""
    tensors = zero.weights()
    for key in MOMENTS if with_moments else ():
        tensors |= {f"{name} ({key})": tensor for name, tensor in zero.trained(key).items()}
    return tensors


def _measure_chunk(chunk: Tensor) -> Statistics:
    values = chunk.double()
    finite = values[values.isfinite()]
    largest = float(finite.abs().max()) if finite.numel() else 0.0
    return Statistics(float(finite.square().sum()), largest, chunk.numel() - finite.numel())


def scan(tensors: dict[str, FlatTensor], advance: Advance) -> dict[str, Statistics]:
    """Statistics of every tensor; `advance` is called with the number of elements of each chunk."""
    statistics = {}
    for name, tensor in tensors.items():
        total = Statistics()
        for _, chunk in tensor.chunks(CHUNK_ELEMENTS):
            total += _measure_chunk(chunk)
            advance(chunk.numel())
        statistics[name] = total
    return statistics


def summarise(statistics: dict[str, Statistics]) -> dict[str, Any]:
    """Statistics of all tensors together, and the names of those with NaN or infinities."""
    total = sum(statistics.values(), Statistics())
    bad = [name for name, of_tensor in statistics.items() if of_tensor.num_not_finite]
    return {
        "norm": total.norm,
        "largest": total.largest,
        "num_not_finite": total.num_not_finite,
        "not_finite_in": ", ".join(bad),
    }


def compare(
    ours: dict[str, FlatTensor], theirs: dict[str, FlatTensor], advance: Advance
) -> tuple[dict[str, Any], dict[str, float]]:
    """How two checkpoints differ.

    Args:
        ours: Tensors of the first, by name.
        theirs: Tensors of the second.
        advance: Called with the number of elements of each pair of chunks.

    Returns:
        Facts, and for each tensor in both that differs the norm of the difference over the norm of the first.
    """
    both = [name for name in ours if name in theirs and ours[name].shape == theirs[name].shape]
    differences = {name: _relative_difference(ours[name], theirs[name], advance) for name in both}
    changed = {name: value for name, value in differences.items() if value != 0}
    facts = {
        "only_in_first": ", ".join(sorted(set(ours) - set(theirs))),
        "only_in_second": ", ".join(sorted(set(theirs) - set(ours))),
        "other_shape": ", ".join(sorted((set(ours) & set(theirs)) - set(both))),
        "num_equal": len(both) - len(changed),
        "num_changed": len(changed),
        "largest_relative_difference": max(changed.values(), default=0.0),
    }
    return facts, dict(sorted(changed.items(), key=lambda item: -item[1]))


def _relative_difference(first: FlatTensor, second: FlatTensor, advance: Advance) -> float:
    """Norm of the difference over the norm of the first; infinite where only one of two elements is finite."""
    difference, own = Statistics(), Statistics()
    pairs = zip(first.chunks(CHUNK_ELEMENTS), second.chunks(CHUNK_ELEMENTS), strict=True)
    for (_, chunk), (_, other) in pairs:
        difference += _measure_chunk((chunk.double() - other.double()).where(chunk != other, 0.0))
        own += _measure_chunk(chunk)
        advance(chunk.numel())
    if difference.num_not_finite:
        return math.inf
    return difference.norm / own.norm if own.norm else (math.inf if difference.norm else 0.0)
