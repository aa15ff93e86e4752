"""A ZeRO checkpoint for another number of ranks, on disk: the flat groups are cut anew, nothing else changes.

DeepSpeed loads the result as if that many ranks had saved it. Tensors are copied range by range, so that memory does
not grow with the model.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lift_ds.storage.flat_groups import (
    FlatTensor,
    Fragment,
    Range,
    share,
    whole,
    zero2_partition,
    zero2_ranges,
    zero3_ranges,
)
from lift_ds.storage.manifest import LATEST, MANIFEST, MANIFEST_SUM, read_manifest, sync_and_hash, write_manifest
from lift_ds.storage.staging import staged_folder
from lift_ds.storage.stored_tensor import StoredTensor
from lift_ds.storage.torch_file import ALLOWED, FRAGMENT_ADDRESS
from lift_ds.storage.torch_writer import write_torch_file
from lift_ds.storage.zero_checkpoint import FULL_STAGE, MASTER, MOMENTS, Shapes, ZeroCheckpoint

from .inspection import find_problems, open_inspected

SUB_GROUP_SIZE = 10**9
ADDRESS = ALLOWED[FRAGMENT_ADDRESS]


class Recutter:
    """The shards of a checkpoint, for another world size; all tensors are found, none is read."""

    def __init__(self, zero: ZeroCheckpoint, world_size: int) -> None:
        self.zero, self.world_size = zero, world_size
        self.sources = {key: zero.trained(key) for key in (MASTER, *MOMENTS)}
        self.param_groups = zero.base_state(0)["param_groups"]
        shapes = zero.groups
        joined = [{n: s for index in group["params"] for n, s in shapes[index].items()} for group in self.param_groups]
        self.sub_groups = [self._split(group) if zero.stage == FULL_STAGE else [group] for group in joined]
        self.groups: list[Shapes] = [group for groups in self.sub_groups for group in groups]

    def _split(self, group: Shapes) -> list[Shapes]:
        """The sub-groups into which DeepSpeed cuts a group under ZeRO-3: a new one once its elements are reached."""
        config = (self.zero.optimizer_files[0].root.get("ds_config") or {}).get("zero_optimization") or {}
        limit = config.get("sub_group_size", SUB_GROUP_SIZE)
        limit = SUB_GROUP_SIZE if limit == "auto" else int(limit)
        sub_groups: list[Shapes] = [{}]
        held = 0
        for name, shape in group.items():
            if held >= limit:
                sub_groups.append({})
                held = 0
            sub_groups[-1][name] = shape
            held += share(math.prod(shape), self.world_size)
        return sub_groups

    def _ranges(self, index: int, rank: int) -> tuple[list[Range], int]:
        """What a rank holds of a group, and the length of its part, filling included."""
        group = self.groups[index]
        if self.zero.stage == FULL_STAGE:
            length = sum(share(math.prod(shape), self.world_size) for shape in group.values())
            return list(zero3_ranges(group, self.world_size, rank)), length
        paddings = self.zero.paddings[index]
        length = zero2_partition(sum(map(math.prod, group.values())) + sum(paddings), self.world_size)
        return list(zero2_ranges(group, paddings, self.world_size, rank)), length

    def _flat(self, index: int, rank: int, key: str, is_lean: bool = False) -> FlatTensor:
        """A rank's part of a group; without the filling at its end where it is lean."""
        ranges, length = self._ranges(index, rank)
        length -= self._filling(index, rank) if is_lean else 0
        return _planned(ranges, length, self.sources[key])

    def _filling(self, index: int, rank: int) -> int:
        """Elements at the end of a rank's part that belong to no parameter, under ZeRO-1 and 2."""
        length = self._ranges(index, rank)[1]
        used = sum(map(math.prod, self.groups[index].values())) + sum(self.zero.paddings[index])
        return min(length, max(0, (rank + 1) * length - used))

    def _optimizer_root(self, rank: int) -> dict[str, Any]:
        indices = range(len(self.groups))
        base = self._base_state(rank)
        saved = self.zero.optimizer_state(0)
        if self.zero.stage == FULL_STAGE:
            masters = [self._flat(index, rank, MASTER) for index in indices]
            saved |= {"partition_count": self.world_size, "fp32_flat_groups": masters, "optimizer_state_dict": base}
        else:
            saved |= {
                "partition_count": [self.world_size] * len(self.groups),
                "single_partition_of_fp32_groups": [self._flat(index, rank, MASTER, is_lean=True) for index in indices],
                "group_paddings": [self._filling(index, rank) for index in indices],
                "base_optimizer_state": base,
                "param_slice_mappings": [_addresses(self._ranges(index, rank)[0]) for index in indices],
            }
        return {**self.zero.optimizer_files[0].root, "optimizer_state_dict": saved}

    def _base_state(self, rank: int) -> dict[str, Any]:
        """State of the optimizer that DeepSpeed wraps, and its groups with the numbers of their new sub-groups."""
        saved = self.zero.base_state(0)["state"]
        state: dict[int, dict[str, Any]] = {}
        groups = []
        for group, parts in zip(self.param_groups, self.sub_groups, strict=True):
            indices = range(len(state), len(state) + len(parts))
            groups.append({**group, "params": list(indices)})
            step = saved[group["params"][0]]["step"]
            for index in indices:  # a step of its own for each: optimizers count up in place
                own_step = whole(step) if isinstance(step, StoredTensor) else step
                state[index] = {"step": own_step, **{key: self._flat(index, rank, key) for key in MOMENTS}}
        return {"state": state, "param_groups": groups}

    def _model_root(self, rank: int) -> dict[str, Any]:
        """What a rank's file holds; rank 0's where that held more than the others'."""
        root = {**self.zero.model_state, "dp_world_size": self.world_size, "param_shapes": self.groups}
        if self.zero.stage == FULL_STAGE and self.zero.frozen:
            frozen = self.zero.frozen
            ranges = {name: list(zero3_ranges({name: frozen[name].shape}, self.world_size, rank)) for name in frozen}
            lengths = {name: share(frozen[name].num_elements, self.world_size) for name in frozen}
            root["frozen_param_fragments"] = {n: _planned(held, lengths[n], frozen) for n, held in ranges.items()}
        return root

    def write(self, shards: Path, after_file: Callable[[int], object]) -> None:
        """Every rank's files, under the names that its stage and precision give them."""
        saved = self.zero.optimizer_files[0].path.name
        for rank in range(self.world_size):
            write_torch_file(shards / saved.replace("_rank_0_", f"_rank_{rank}_", 1), self._optimizer_root(rank))
            after_file(1)
            if rank == 0 or self.zero.stage == FULL_STAGE:
                name = self.zero.model_files[0].path.name.replace("_pp_rank_0_", f"_pp_rank_{rank}_", 1)
                write_torch_file(shards / name, self._model_root(rank))


def _planned(ranges: Sequence[Range], length: int, sources: dict[str, FlatTensor]) -> FlatTensor:
    """Ranges of parameters at their offsets in a flat tensor, zeros between and behind them."""
    fragments: list[Fragment] = []
    for held in ranges:
        fragments += sources[held.name].within(held.start, held.stop, held.offset)
    first = next(iter(sources)) if not ranges else ranges[0].name
    return FlatTensor(torch.Size([length]), sources[first].dtype, tuple(fragments))


def _addresses(ranges: Sequence[Range]) -> dict[str, Any]:
    """Where each parameter is in a rank's part, as DeepSpeed notes it."""
    addresses = {}
    for held in ranges:
        addresses[held.name] = ADDRESS()
        vars(addresses[held.name]).update(numel=held.stop - held.start, start=held.offset)
    return addresses


def reshard(path: Path, world_size: int, output: Path, after_file: Callable[[int], object]) -> dict[str, Any]:
    """Writes a checkpoint for another number of ranks.

    Args:
        path: A run, a checkpoint, or a folder with ZeRO shards.
        world_size: Ranks to cut it for.
        output: Checkpoint to create: like ours for ours; for a stranger's the shards, `latest`, and the files that lie
            beside the shards (a Trainer resumes with them; random states of more ranks than there were are not there).
        after_file: Called with 1 after each file.

    Raises:
        ValueError: The checkpoint is not whole, or `output` exists.
        RuntimeError: The place cannot be written, or is full.
    """
    recutter, own = prepare_reshard(path, world_size)
    zero = recutter.zero
    rest = _copied_files(zero.folder, own)
    with staged_folder(output, sum(file.stat().st_size for file in [*zero.folder.iterdir(), *rest])) as folder:
        shards = folder / zero.folder.name
        shards.mkdir()
        recutter.write(shards, after_file)
        for file in rest:
            target = folder / file.relative_to(zero.folder.parent)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
        if own is None:
            (folder / LATEST).write_text(shards.name, encoding="utf-8")
        else:
            paths = sorted(path for path in folder.rglob("*") if path.is_file())
            files = {str(path.relative_to(folder)): sync_and_hash(path) for path in paths}
            manifest = replace(read_manifest(own), world_size=world_size, files=files)
            write_manifest(folder, manifest)
    return {"checkpoint": str(own or zero.folder), "world_size": zero.world_size, "new_world_size": world_size}


def prepare_reshard(path: Path, world_size: int) -> tuple[Recutter, Path | None]:
    """Opens and checks a checkpoint.

    Raises:
        ValueError: It is not whole, or the number of ranks is none.
    """
    if world_size < 1:
        raise ValueError(f"{world_size} ranks: at least 1.")
    zero, own = open_inspected(path)
    problems = find_problems(zero, own)
    if problems:
        raise ValueError(f"{own or zero.folder} is not whole: {'; '.join(problems)}.")
    return Recutter(zero, world_size), own


def _copied_files(shards: Path, own: Path | None) -> list[Path]:
    """The files of a checkpoint that are copied as they are.

    Of ours that is everything but shards and manifest. Of a stranger's only the files beside the shards belong to it,
    and only where `latest` says what the folder is.
    """
    folder, made_anew = shards.parent, (LATEST,) if own is None else (MANIFEST, MANIFEST_SUM)
    if not (folder / made_anew[0]).is_file():
        return []
    files = [path for path in (folder.iterdir() if own is None else folder.rglob("*")) if path.is_file()]
    return sorted(path for path in files if path.name not in made_anew and shards not in path.parents)
