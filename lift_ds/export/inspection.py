"""What a checkpoint holds and was taught in, whether it is whole, what its numbers are, and how two of them differ."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from lift_ds.data.text.chat_format import ChatFormat, format_of_settings, read_format, stored_template
from lift_ds.data.text.templates import TEMPLATES, read_template
from lift_ds.storage.flat_groups import FlatTensor
from lift_ds.storage.manifest import DIFFICULTY_FOLDER, HF_FOLDER, LANES_FILE, find_faults, read_manifest, require_whole
from lift_ds.storage.run_record import read_run
from lift_ds.storage.stored_tensor import CHUNK_ELEMENTS, find_damage
from lift_ds.storage.zero_checkpoint import MOMENTS, ZeroCheckpoint, open_zero_checkpoint, optimizer_step
from lift_ds.storage.zero_files import find_shard_folder, own_checkpoint
from lift_ds.text_files import load_json, read_text


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


def open_inspected(path: Path, is_whole: bool = False) -> tuple[ZeroCheckpoint, Path | None]:
    """The shards of a checkpoint, and the checkpoint of ours around them, if any.

    Args:
        path: A run, a checkpoint or a folder with ZeRO shards.
        is_whole: Compare every byte of a checkpoint of ours with its manifest first.

    Raises:
        ValueError: The shards are missing, damaged, or do not fit each other; or the checkpoint is not whole.
    """
    shards = find_shard_folder(path)
    own = own_checkpoint(shards)
    if own is not None and is_whole:
        require_whole(own)
    return open_zero_checkpoint(shards), own


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


def checkpoint_format(own: Path) -> ChatFormat:
    """The chat format that a checkpoint of ours was trained with, the template's text included.

    It is also found for one that was written before it was kept.

    Raises:
        ValueError: It was written before the template was kept, and the file that it names is not there or has changed.
    """
    kept = read_format(own / HF_FOLDER)
    if kept is not None:
        return kept
    data = read_run(own)["run"]["data"]
    columns = [source.get("columns") or {} for source in data.get("sources") or []] + [data.get("columns") or {}]
    found = format_of_settings(data, columns, stored_template(own / HF_FOLDER))
    named = data.get("chat_template")
    return found if named is None else replace(found, template=_named_template(own, named))


def _named_template(own: Path, named: str) -> str:
    try:
        source, problem = TEMPLATES.get(named) or read_template(named), ""
    except ValueError as error:
        source, problem = "", str(error)
    identity: dict[str, Any] = load_json(read_text(own / LANES_FILE)).get("identity", {})
    if not problem and hashlib.sha256(source.encode()).hexdigest() != identity.get("chat template"):
        problem = f"data.chat_template={named!r} has changed since."
    if problem:
        raise ValueError(
            f"{own} was trained with a chat template that it does not hold: {problem} Put the file back there, so that "
            "the model is asked as it was taught."
        )
    return source


def find_problems(zero: ZeroCheckpoint, own: Path | None) -> list[str]:
    """What is not as it was written: by the manifest of ours, else by the CRCs of every tensor."""
    if own is not None:
        return find_faults(own, read_manifest(own))
    files = [*zero.optimizer_files.values(), *zero.model_files.values()]
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


def scan(tensors: dict[str, FlatTensor], advance: Callable[[int], object]) -> dict[str, Statistics]:
    """Statistics of every tensor; `advance` is called with the number of elements of each chunk."""
    statistics = {}
    for name, tensor in tensors.items():
        statistics[name] = Statistics()
        for _, chunk in tensor.chunks(CHUNK_ELEMENTS):
            statistics[name] += _measure_chunk(chunk)
            advance(chunk.numel())
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
    ours: dict[str, FlatTensor], theirs: dict[str, FlatTensor], advance: Callable[[int], object]
) -> tuple[dict[str, Any], dict[str, float]]:
    """How two checkpoints differ.

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


def _relative_difference(first: FlatTensor, second: FlatTensor, advance: Callable[[int], object]) -> float:
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
