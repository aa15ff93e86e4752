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
    """The shards of all ranks, opened and found to belong together.

    Args:
        folder: Their folder.
        stage: ZeRO stage, 1 to 3.
        optimizer_files: Each rank's optimizer state.
        model_files: Each rank's model state under ZeRO-3, one otherwise.
    """

    folder: Path
    stage: int
    optimizer_files: list[TorchFile]
    model_files: list[TorchFile]

    @property
    def world_size(self) -> int:
        """Ranks that wrote it."""
        return len(self.optimizer_files)

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
        ranks = [self.flat_groups(rank, key) for rank in range(self.world_size)]
        try:
            return self._zero3(ranks) if self.stage == FULL_STAGE else self._zero2(ranks)
        except ValueError as error:
            raise ValueError(f"{self.folder}: {key} does not fit param_shapes: {error}.") from error

    def _zero3(self, ranks: list[list[StoredTensor]]) -> dict[str, FlatTensor]:
        shapes = {name: shape for group in self.groups for name, shape in group.items()}
        tensors = zero3_tensors(shapes, ranks)
        needed = sum(share(math.prod(shape), self.world_size) for shape in shapes.values())
        for rank, groups in enumerate(ranks):
            held = sum(group.num_elements for group in groups)
            if held != needed:
                raise ValueError(f"rank {rank} holds {held} elements where {needed} are described")
        return tensors

    def _zero2(self, ranks: list[list[StoredTensor]]) -> dict[str, FlatTensor]:
        tensors: dict[str, FlatTensor] = {}
        for index, group in enumerate(self.groups):
            parts = [groups[index] for groups in ranks]
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
        fragments = [dict(file.root.get("frozen_param_fragments") or {}) for file in self.model_files]
        if self.stage < FULL_STAGE:
            return {name: whole(fragments[0][name]) for name in shapes}
        tensors: dict[str, FlatTensor] = {}
        for name, shape in shapes.items():
            tensors |= zero3_tensors({name: shape}, [[fragment[name]] for fragment in fragments])
        return tensors

    @cached_property
    def buffers(self) -> dict[str, FlatTensor]:
        """Persistent buffers, as rank 0 saved them."""
        state = self.model_state
        return {name: whole(state["module"][name]) for name in state["buffer_names"] if name in state["module"]}

    def weights(self) -> dict[str, FlatTensor]:
        """Everything that a model is made of: buffers, frozen and trained parameters; tied names once."""
        return self.buffers | self.frozen | self.trained()


def open_zero_checkpoint(folder: Path) -> ZeroCheckpoint:
    """Opens the shards of a folder, see `zero_files.find_shard_folder`.

    Raises:
        ValueError: A file is missing, damaged, foreign, malicious, or of another save than the first.
    """
    optimizer_files, model_files = ([open_torch_file(path) for path in paths] for paths in list_rank_files(folder))
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
    _check_world(folder, stage, optimizer_files, model_files)
    everything = [*optimizer_files, *model_files]
    _require_same({file.path: file.root.get("ds_version") for file in everything}, "its DeepSpeed version is")
    _require_same({file.path: int(file.root["global_steps"]) for file in model_files}, "its step is")
    for key in ("param_shapes", "frozen_param_shapes"):
        _require_same({file.path: _names_and_shapes(file.root.get(key)) for file in model_files}, f"its {key} are")
    _require_same({file.path: optimizer_step(file) for file in optimizer_files}, "its optimizer's step is")
    return ZeroCheckpoint(folder, stage, optimizer_files, model_files)


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


def _check_world(folder: Path, stage: int, optimizer_files: list[TorchFile], model_files: list[TorchFile]) -> None:
    """Checks the number of files against the world size that each of them names."""
    for file in optimizer_files:
        count = file.root["optimizer_state_dict"]["partition_count"]
        world_size = max(count) if isinstance(count, list) else int(count)
        if world_size != len(optimizer_files):
            raise ValueError(
                f"{file.path} is of {world_size} ranks, {len(optimizer_files)} optim_states are in {folder}: files of "
                "another save, or not all of them."
            )
    expected = len(optimizer_files) if stage == FULL_STAGE else 1
    if len(model_files) != expected:
        raise ValueError(f"{folder}: {len(model_files)} model_states where ZeRO-{stage} has {expected}.")
    for file in model_files:
        if file.root["dp_world_size"] != len(optimizer_files):
            raise ValueError(f"{file.path} is of {file.root['dp_world_size']} ranks, not {len(optimizer_files)}.")


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
