"""A ZeRO checkpoint, ours or a stranger's: its tensors by name, found without reading them.

`param_shapes` is the only map from flat data to names. Everything that can be compared is compared before a tensor is
handed out: ranks, world size, stage, versions, steps, names, and the lengths of all flat groups.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from .flat_groups import FlatTensor, share, whole, zero2_partition, zero2_tensors, zero3_tensors
from .stored_tensor import StoredTensor
from .torch_file import Stand, TorchFile, open_torch_file
from .zero_files import list_rank_files

FULL_STAGE = 3
MASTER = "master"
MOMENTS = ("exp_avg", "exp_avg_sq")
Shapes = dict[str, torch.Size]


@dataclass(frozen=True)
class ZeroCheckpoint:
    """Shards, opened and found to belong together: of all ranks, or of those that one reader needs.

    Args:
        folder: Their folder.
        stage: ZeRO stage, 1 to 3.
        world_size: Ranks that wrote it.
        optimizer_files: Optimizer states by rank, in order; rank 0's is there.
        model_files: Model states of the same ranks under ZeRO-3, rank 0's otherwise.
    """

    folder: Path
    stage: int
    world_size: int
    optimizer_files: dict[int, TorchFile]
    model_files: dict[int, TorchFile]

    @property
    def model_state(self) -> dict[str, Any]:
        """Rank 0's model state."""
        return dict(self.model_files[0].root)

    @property
    def step(self) -> int:
        """Optimizer steps taken."""
        return int(self.model_state["global_steps"])

    @property
    def groups(self) -> list[Shapes]:
        """Names and shapes of the trained parameters, by flat group, in order."""
        return [dict(group) for group in self.model_state["param_shapes"]]

    @property
    def aliases(self) -> dict[str, str]:
        """Names of tied parameters, with the name that holds the data."""
        return dict(self.model_state.get("shared_params") or {})

    def optimizer_state(self, rank: int) -> dict[str, Any]:
        """What rank's DeepSpeed optimizer saved."""
        return dict(self.optimizer_files[rank].root["optimizer_state_dict"])

    def base_state(self, rank: int) -> dict[str, Any]:
        """State of the optimizer that DeepSpeed wraps: `state` by flat group, and `param_groups`.

        Raises:
            ValueError: It is of the elastic kind, which was given up, or is not there.
        """
        key = "optimizer_state_dict" if self.stage == FULL_STAGE else "base_optimizer_state"
        state = self.optimizer_state(rank).get(key)
        if not isinstance(state, dict):
            path = self.optimizer_files[rank].path
            raise ValueError(f"{path}: no optimizer state of the usual kind ({key}); weights can still be exported.")
        return dict(state)

    def flat_groups(self, rank: int, key: str) -> list[StoredTensor]:
        """A rank's flat groups: of the float32 weights (`master`), or of a moment of the optimizer.

        Raises:
            ValueError: The optimizer holds no such moment.
        """
        if key == MASTER:
            name = "fp32_flat_groups" if self.stage == FULL_STAGE else "single_partition_of_fp32_groups"
            return list(self.optimizer_state(rank)[name])
        states = self.base_state(rank)["state"]
        try:
            return [states[index][key] for index in range(len(self.flat_groups(rank, MASTER)))]
        except KeyError as error:
            path = self.optimizer_files[rank].path
            raise ValueError(
                f"{path}: the optimizer state has no {key}; it is kept elsewhere, or not Adam's."
            ) from error

    def trained(self, key: str = MASTER) -> dict[str, FlatTensor]:
        """The trained parameters by name: their float32 weights, or a moment of them.

        Raises:
            ValueError: Flat data and `param_shapes` do not fit each other.
        """
        ranks = {rank: self.flat_groups(rank, key) for rank in self.optimizer_files}
        try:
            return self._zero3(ranks) if self.stage == FULL_STAGE else self._zero2(ranks)
        except ValueError as error:
            raise ValueError(f"{self.folder}: {key} does not fit param_shapes: {error}.") from error

    def _zero3(self, ranks: dict[int, list[StoredTensor]]) -> dict[str, FlatTensor]:
        shapes = {name: shape for group in self.groups for name, shape in group.items()}
        tensors = zero3_tensors(shapes, ranks, self.world_size)
        needed = sum(share(math.prod(shape), self.world_size) for shape in shapes.values())
        for rank, groups in ranks.items():
            held = sum(group.num_elements for group in groups)
            if held != needed:
                raise ValueError(f"rank {rank} holds {held} elements where {needed} are described")
        return tensors

    def _zero2(self, ranks: dict[int, list[StoredTensor]]) -> dict[str, FlatTensor]:
        tensors: dict[str, FlatTensor] = {}
        for index, group in enumerate(self.groups):
            parts = [groups[index] for groups in ranks.values()]
            tensors |= zero2_tensors(group, parts, self.paddings[index])
            used = sum(map(math.prod, group.values())) + sum(self.paddings[index])
            held = sum(part.num_elements for part in parts)
            if not used <= held <= zero2_partition(used, self.world_size) * self.world_size:
                raise ValueError(f"group {index} holds {held} elements where {used} are described")
        return tensors

    @property
    def paddings(self) -> list[list[int]]:
        """Elements behind each parameter of each group under ZeRO-1 and 2."""
        saved = self.optimizer_state(0).get("param_alignment_paddings")
        return saved if saved is not None else [[0] * len(group) for group in self.groups]

    @cached_property
    def frozen(self) -> dict[str, FlatTensor]:
        """Parameters that are not trained."""
        shapes = dict(self.model_state.get("frozen_param_shapes") or {})
        fragments = {
            rank: dict(file.root.get("frozen_param_fragments") or {}) for rank, file in self.model_files.items()
        }
        if self.stage < FULL_STAGE:
            return {name: whole(fragments[0][name]) for name in shapes}
        tensors: dict[str, FlatTensor] = {}
        for name, shape in shapes.items():
            parts = {rank: [fragment[name]] for rank, fragment in fragments.items()}
            tensors |= zero3_tensors({name: shape}, parts, self.world_size)
        return tensors

    @cached_property
    def buffers(self) -> dict[str, FlatTensor]:
        """Persistent buffers, as rank 0 saved them."""
        state = self.model_state
        return {name: whole(state["module"][name]) for name in state["buffer_names"] if name in state["module"]}

    def weights(self) -> dict[str, FlatTensor]:
        """Everything that a model is made of: buffers, frozen and trained parameters; tied names once."""
        return self.buffers | self.frozen | self.trained()


def open_zero_checkpoint(folder: Path, reader: tuple[int, int] | None = None) -> ZeroCheckpoint:
    """Opens the shards of a folder, see `zero_files.find_shard_folder`.

    Args:
        folder: It.
        reader: A rank and the number of ranks of a ZeRO-3 run that reads its own ranges, no others. Of a checkpoint of
            ZeRO-3 only the files that have these are opened, and rank 0's: not by every rank those of all.

    Raises:
        ValueError: A file is missing, damaged, foreign, malicious, or of another save than the first.
    """
    optimizer_paths, model_paths = list_rank_files(folder)
    num_ranks = len(optimizer_paths)
    ranks = list(range(num_ranks))
    if reader is not None and len(model_paths) == num_ranks > 1:  # as ZeRO-3 writes them
        ranks = _ranks_read(open_torch_file(model_paths[0]), num_ranks, *reader)
    of_optimizer = {rank: open_torch_file(optimizer_paths[rank]) for rank in ranks}
    of_model = {rank: open_torch_file(model_paths[rank]) for rank in ranks if rank < len(model_paths)}
    optimizer_files, model_files = list(of_optimizer.values()), list(of_model.values())
    for file in optimizer_files:
        _require_keys(file, file.root, ["optimizer_state_dict"])
        _require_keys(file, file.root["optimizer_state_dict"], ["partition_count"])
    stages = {file.path: _stage_of(file) for file in optimizer_files}
    stage = next(iter(stages.values()))
    _require_same(stages, "its ZeRO stage is")
    if stage not in (1, 2, FULL_STAGE):
        raise ValueError(f"{folder}: ZeRO stage {stage}; stages 1 to 3 are read.")
    for file in model_files:
        _require_keys(file, file.root, ["module", "buffer_names", "param_shapes", "global_steps", "dp_world_size"])
    _check_world(folder, stage, (num_ranks, len(model_paths)), optimizer_files, model_files)
    everything = [*optimizer_files, *model_files]
    _require_same({file.path: file.root.get("ds_version") for file in everything}, "its DeepSpeed version is")
    _require_same({file.path: int(file.root["global_steps"]) for file in model_files}, "its step is")
    for key in ("param_shapes", "frozen_param_shapes"):
        _require_same({file.path: _names_and_shapes(file.root.get(key)) for file in model_files}, f"its {key} are")
    _require_same({file.path: optimizer_step(file) for file in optimizer_files}, "its optimizer's step is")
    return ZeroCheckpoint(folder, stage, num_ranks, of_optimizer, of_model)


def _ranks_read(first: TorchFile, num_ranks: int, rank: int, world_size: int) -> list[int]:
    """Whose files have the ranges of a rank under ZeRO-3, and 0, by the shapes that the first model state names."""
    _require_keys(first, first.root, ["param_shapes"])
    listed = [*_names_and_shapes(first.root["param_shapes"]), *_names_and_shapes(first.root.get("frozen_param_shapes"))]
    found = {0}
    for size in {math.prod(shape) for group in listed for _, shape in group}:
        theirs, mine = share(size, num_ranks), share(size, world_size)
        start = min(rank * mine, size)
        stop = min(start + mine, size)
        found |= set(range(start // theirs, -(-stop // theirs))) if start < stop else set()
    return sorted(found)


def _require_keys(file: TorchFile, values: Any, keys: list[str]) -> None:
    missing = [key for key in keys if not isinstance(values, dict) or key not in values]
    if missing:
        raise ValueError(f"{file.path}: no shard of a ZeRO checkpoint: {', '.join(missing)} missing.")


def _stage_of(file: TorchFile) -> int:
    """The ZeRO stage of a rank's optimizer state.

    With bf16 weights and float32 gradients DeepSpeed runs stage 1 by an optimizer of its own (`BF16_Optimizer`), whose
    flat groups are like those of stage 2, and which does not say its stage.
    """
    state = file.root["optimizer_state_dict"]
    if "zero_stage" not in state:
        _require_keys(file, state, ["single_partition_of_fp32_groups", "group_paddings", "base_optimizer_state"])
        return 1
    stage = state["zero_stage"]
    return int(stage.arguments[0]) if isinstance(stage, Stand) else int(stage)


def _check_world(
    folder: Path, stage: int, counts: tuple[int, int], optimizer_files: list[TorchFile], model_files: list[TorchFile]
) -> None:
    """Checks the number of files of each kind against the world size that each of the opened ones names."""
    num_ranks, num_models = counts
    for file in optimizer_files:
        count = file.root["optimizer_state_dict"]["partition_count"]
        world_size = max(count) if isinstance(count, list) else int(count)
        if world_size != num_ranks:
            raise ValueError(
                f"{file.path} is of {world_size} ranks, {num_ranks} optim_states are in {folder}: files of "
                "another save, or not all of them."
            )
    expected = num_ranks if stage == FULL_STAGE else 1
    if num_models != expected:
        raise ValueError(f"{folder}: {num_models} model_states where ZeRO-{stage} has {expected}.")
    for file in model_files:
        if file.root["dp_world_size"] != num_ranks:
            raise ValueError(f"{file.path} is of {file.root['dp_world_size']} ranks, not {num_ranks}.")


def _names_and_shapes(shapes: Any) -> list[list[tuple[str, list[int]]]]:
    groups = shapes if isinstance(shapes, list) else [shapes or {}]
    return [[(name, list(shape)) for name, shape in group.items()] for group in groups]


def optimizer_step(file: TorchFile) -> list[float]:
    """Steps of the wrapped optimizer, by flat group; empty where it counts elsewhere."""
    state = file.root["optimizer_state_dict"]
    base = state.get("optimizer_state_dict", state.get("base_optimizer_state"))
    states = base.get("state", {}) if isinstance(base, dict) else {}
    steps = [state["step"] for _, state in sorted(states.items()) if "step" in state]
    return [float(step.load()) if isinstance(step, StoredTensor) else float(step) for step in steps]


def _require_same(values: dict[Path, Any], what: str) -> None:
    first_path, first = next(iter(values.items()))
    for path, value in values.items():
        if value != first:
            short = (str(value)[:80], str(first)[:80])
            raise ValueError(
                f"{path}: {what} {short[0]}, that of {first_path.name} {short[1]}: a file of another save."
            )
