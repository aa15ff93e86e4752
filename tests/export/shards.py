"""ZeRO shards as DeepSpeed 0.19.8 lays them out, written by `torch.save` with DeepSpeed's own classes, of any world."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

import torch
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from torch import Tensor


@dataclass
class Content:
    """What a checkpoint holds, by name: trained parameters by group, with their moments drawn from them."""

    groups: list[dict[str, Tensor]]
    frozen: dict[str, Tensor] = field(default_factory=dict)
    buffers: dict[str, Tensor] = field(default_factory=dict)
    shared: dict[str, str] = field(default_factory=dict)
    step: int = 7
    master_dtype: torch.dtype = torch.float32
    computes_in: str = "bf16"
    version: str = "0.19.8"
    alignment: int = 1


def moment(tensor: Tensor, key: str) -> Tensor:
    """A moment that tells where it belongs."""
    return tensor.float() * 0.5 if key == "exp_avg" else tensor.float() ** 2


def partition3(tensor: Tensor, world: int, rank: int) -> Tensor:
    """A rank's range under ZeRO-3: ceil(n / W) elements, zeros behind the end."""
    flat = tensor.flatten()
    size = -(-flat.numel() // world)
    padded = torch.cat([flat, flat.new_zeros(size * world - flat.numel())])
    return padded[size * rank : size * (rank + 1)].clone()


def flat2(tensors: list[Tensor], world: int, alignment: int) -> tuple[Tensor, int, list[int]]:
    """A group under ZeRO-2: parameters one behind the other, filled up to a multiple of 2 W; with the filling."""
    parts, paddings, length = [], [], 0
    for place, tensor in enumerate(tensors):
        length += tensor.numel()
        padding = 0 if place == len(tensors) - 1 else -length % alignment
        length += padding
        parts += [tensor.flatten(), tensor.new_zeros(padding)]
        paddings.append(padding)
    filling = -length % (2 * world)
    return torch.cat([*parts, tensors[0].new_zeros(filling)]), filling, paddings


def write_zero3(folder: Path, content: Content, world: int) -> None:
    for rank in range(world):
        flats, states = [], {}
        for place, group in enumerate(content.groups):
            flats.append(torch.cat([partition3(each.to(content.master_dtype), world, rank) for each in group.values()]))
            states[place] = {"step": torch.tensor(float(content.step))} | {
                key: torch.cat([partition3(moment(each, key), world, rank) for each in group.values()])
                for key in ("exp_avg", "exp_avg_sq")
            }
        groups = [{"lr": 1e-3, "params": [place]} for place in range(len(flats))]
        optimizer = {
            "zero_stage": ZeroStageEnum.weights,
            "loss_scaler": LossScaler(1.0),
            "partition_count": world,
            "optimizer_state_dict": {"state": states, "param_groups": groups},
            "fp32_flat_groups": flats,
        }
        name = f"{content.computes_in}_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        save_optimizer(folder / name, content, optimizer)
        fragments = {name: partition3(tensor, world, rank) for name, tensor in content.frozen.items()}
        placeholders = {name: torch.empty(0) for group in content.groups for name in group}
        path = folder / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt"
        save_model(path, content, world, fragments, placeholders)


def write_zero2(folder: Path, content: Content, world: int) -> None:
    for rank in range(world):
        masters, states, fillings, paddings = [], {}, [], []
        for place, group in enumerate(content.groups):
            tensors = [each.to(content.master_dtype) for each in group.values()]
            flat, filling, inside = flat2(tensors, world, content.alignment)
            size = len(flat) // world
            part = flat[size * rank : size * (rank + 1)].clone()
            mine = min(size, max(0, size * (rank + 1) - (len(flat) - filling)))
            masters.append(part[: size - mine].clone())
            fillings.append(mine)
            paddings.append(inside)
            states[place] = {"step": torch.tensor(float(content.step))}
            for key in ("exp_avg", "exp_avg_sq"):
                whole = flat2([moment(each, key) for each in group.values()], world, content.alignment)[0]
                states[place][key] = whole[size * rank : size * (rank + 1)].clone()
        groups = [{"lr": 1e-3, "params": [place]} for place in range(len(masters))]
        optimizer = {
            "zero_stage": ZeroStageEnum.gradients,
            "loss_scaler": LossScaler(1.0),
            "base_optimizer_state": {"state": states, "param_groups": groups},
            "single_partition_of_fp32_groups": masters,
            "group_paddings": fillings,
            "param_alignment_paddings": paddings,
            "partition_count": [world] * len(masters),
            "ds_version": content.version,
        }
        name = f"{content.computes_in}_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        save_optimizer(folder / name, content, optimizer)
    halves = {name: tensor.bfloat16() for group in content.groups for name, tensor in group.items()}
    save_model(folder / "mp_rank_00_model_states.pt", content, world, content.frozen, halves | content.frozen)


def save_optimizer(path: Path, content: Content, state: dict) -> None:
    ds_config = {content.computes_in: {"enabled": True}}
    torch.save({"optimizer_state_dict": state, "ds_config": ds_config, "ds_version": content.version}, path)


def save_model(path: Path, content: Content, world: int, fragments: dict, module: dict) -> None:
    state = {
        "module": OrderedDict(module | content.buffers),
        "buffer_names": list(content.buffers),
        "param_shapes": [OrderedDict((name, each.shape) for name, each in group.items()) for group in content.groups],
        "frozen_param_shapes": OrderedDict((name, each.shape) for name, each in content.frozen.items()),
        "frozen_param_fragments": OrderedDict(fragments),
        "shared_params": content.shared,
        "global_steps": content.step,
        "dp_world_size": world,
        "mp_world_size": 1,
        "ds_version": content.version,
    }
    torch.save(state, path)


def write_shards(folder: Path, content: Content, stage: int, world: int) -> Path:
    """Writes `folder/global_stepN` and `latest`; returns `folder`."""
    shards = folder / f"global_step{content.step}"
    shards.mkdir(parents=True)
    (write_zero3 if stage == 3 else write_zero2)(shards, content, world)
    (folder / "latest").write_text(shards.name)
    return folder


def odd_content(**changes) -> Content:
    """Odd sizes, a scalar-like parameter smaller than the world, two groups, frozen and tied ones, buffers."""
    generator = torch.Generator().manual_seed(5)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    content = Content(
        groups=[
            {"embed.weight": drawn(13, 7), "layers.0.q_proj.weight": drawn(7, 7), "layers.0.up.weight": drawn(11, 7)},
            {"layers.0.norm.weight": drawn(7), "layers.0.gate.bias": drawn(1)},
        ],
        frozen={"frozen.weight": drawn(5, 3).bfloat16(), "frozen.bias": drawn(3).bfloat16()},
        buffers={"rope.inv_freq": drawn(4).bfloat16(), "counts": torch.arange(6)},
        shared={"head.weight": "embed.weight"},
    )
    for name, value in changes.items():
        setattr(content, name, value)
    return content
