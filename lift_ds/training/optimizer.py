"""AdamW as DeepSpeed's engine gets it, and the learning rate of each step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from deepspeed.ops.adam import DeepSpeedCPUAdam
from torch import Tensor, nn

from lift_ds.config.training import OptimConfig
from lift_ds.models.weights import whole_shape


def make_optimizer(root: nn.Module, optim: OptimConfig, is_offloaded: bool) -> torch.optim.Optimizer:
    """AdamW in one kernel, which makes no copies; vectors (norms, biases) do not decay.

    DeepSpeed's own where its state is kept off the accelerator, torch's anywhere else.
    """
    trained = [parameter for parameter in root.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trained if len(whole_shape(parameter)) > 1]
    vectors = [parameter for parameter in trained if len(whole_shape(parameter)) <= 1]
    both = [{"params": matrices, "weight_decay": optim.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    groups, betas = [group for group in both if group["params"]], (optim.beta1, optim.beta2)
    if is_offloaded:
        return DeepSpeedCPUAdam(groups, lr=optim.lr, betas=betas, eps=optim.eps, adamw_mode=True)
    return torch.optim.AdamW(groups, lr=optim.lr, betas=betas, eps=optim.eps, fused=True)


def spare_copies(zero: Any) -> None:
    """Has ZeRO-3 do without two copies that it makes: float32 masters of float32 weights, and the flat gradients.

    DeepSpeed 0.19.8 means to share the masters, but `_create_fp32_partitions` compares a torch.device with a string.
    Its update puts the gradients of a group one after the other (`flatten`), which they are already.
    """
    zero.flatten = joined
    for master, weights in zip(zero.fp32_partitioned_groups_flat, zero.fp16_partitioned_groups_flat, strict=True):
        if (master.dtype, master.device) == (weights.dtype, weights.device):
            master.data = weights.data


def joined(tensors: Sequence[Tensor]) -> Tensor:
    """Flat tensors of one type one after the other: a view where they lie so in one storage, else a copy."""
    first = tensors[0]
    storage, end = first.untyped_storage().data_ptr(), first.storage_offset()
    for tensor in tensors:
        if (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.stride()) != (storage, end, (1,)):
            return torch.cat([each.flatten() for each in tensors])
        end += tensor.numel()
    return first.as_strided((end - first.storage_offset(),), (1,))


def learning_rate(step: int, optim: OptimConfig) -> float:
    """The rate of optimizer step `step` (from 0): warm-up, then a schedule whose last step is short of its end."""
    warmup_steps = round(optim.warmup_ratio * optim.steps)
    if step < warmup_steps:
        return optim.lr * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(optim.steps - warmup_steps, 1)
    course = {
        "constant": 1.0,
        "linear": 1.0 - progress,
        "cosine": 0.5 + 0.5 * math.cos(math.pi * progress),
    }[optim.schedule]
    return optim.lr * (optim.min_lr_ratio + (1 - optim.min_lr_ratio) * course)
