"""The only door to DeepSpeed: distributed start, the partitioned model, the optimizer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.ops.adam import DeepSpeedCPUAdam
from deepspeed.utils import set_z3_leaf_modules
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_utils import local_torch_dtype

from lift_ds.config.training import OptimConfig
from lift_ds.data.batch import MicroBatch
from lift_ds.models.families import family_of
from lift_ds.models.head import MaskedDiffusionModel
from lift_ds.models.weights import WeightSource, fill_parameters, whole_shape
from lift_ds.ranks.devices import (
    check_device,
    check_no_gpu,
    claim_device,
    give_back_memory,
    settle_allocator,
    share_cores,
    share_cores_beside_gpu,
    share_heap,
    why_no_bf16,
)
from lift_ds.ranks.launch import Launch, read_launch
from lift_ds.ranks.meeting import Meeting, meet
from lift_ds.ranks.shares import Collectives

from .extensions import guard_builds
from .step import DiffusionStep, DropoutKey, StepResult
from .timing import StepClock


def has_accelerator() -> bool:
    """Whether DeepSpeed runs on something other than the CPU."""
    return bool(get_accelerator().device_name() != "cpu")


def current_device() -> torch.device:
    """Where this rank computes."""
    return torch.device(get_accelerator().current_device_name())


def has_bf16() -> bool:
    """Whether "auto" means bf16 here: on an accelerator that computes in it."""
    return has_accelerator() and why_no_bf16(current_device()) is None


def device_gib() -> float:
    """Memory of what this rank computes on, in GiB; the host's where that is the CPU."""
    return float(get_accelerator().total_memory()) / 2**30


def start_distributed(launch: Launch) -> None:
    """Joins the process group and takes this rank's device; CPU ranks share the cores.

    Raises:
        RuntimeError: This rank has no device of its own, or the ranks do not meet.
    """
    meeting = meet(launch)  # first: what only some machines lack is then said by them, and all end
    take_device(launch, meeting)
    meeting.gather("taking a device")
    guard_builds()
    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)


def take_device(launch: Launch, meeting: Meeting) -> None:
    """The device that this rank computes on from now on.

    Raises:
        RuntimeError: There is none for it, or another rank has it.
    """
    accelerator = get_accelerator()
    if not has_accelerator():
        check_no_gpu()
        share_cores(launch)
        share_heap()
        return
    check_device(launch, accelerator.device_count())
    if accelerator.device_name() == "cuda":
        settle_allocator()
    accelerator.set_device(launch.local_rank)
    device = current_device()
    if device.type == "cuda":
        claim_device(meeting, str(torch.cuda.get_device_properties(device).uuid))
    reason = why_no_bf16(device)
    if reason is not None and launch.is_main:
        print(f"{reason}: bf16.enabled=auto is false", flush=True)


def build_model(config: PretrainedConfig, source: WeightSource, ds_json: dict[str, Any], label: str) -> PreTrainedModel:
    """A model with its weights; under ZeRO-3 it is cut from the start, and each rank reads only its own part.

    Args:
        config: The model's config.
        source: Its weights.
        ds_json: Resolved DeepSpeed JSON, here and below.
        label: What to call the weights in messages.

    Raises:
        ValueError: Names or shapes of the weights do not fit the config, or the device has no bf16.
    """
    reason = why_no_bf16(current_device()) if ds_json["bf16"]["enabled"] else None
    if reason is not None:
        raise ValueError(f'bf16.enabled=true, but {reason}; write "auto" or false in the DeepSpeed JSON')
    dtype = torch.bfloat16 if ds_json["bf16"]["enabled"] else torch.float32
    if ds_json["zero_optimization"]["stage"] == 3:
        zero_init = CutWithoutData(config_dict_or_path=ds_json)  # its dtype= means bf16 on CPUs without fp16
        with zero_init, WithoutInitialValues(), local_torch_dtype(dtype):  # else it would copy each to the type
            model = family_of(config).model_class(config)
        torch.nn.Module.to(model, dtype=dtype)
    else:
        with torch.device("meta"):
            model = family_of(config).model_class(config)
        torch.nn.Module.to(model, dtype=dtype)
        torch.nn.Module.to_empty(model, device=get_accelerator().current_device_name())
    fill_parameters(model.named_parameters(), source, label)
    return model


class CutWithoutData(deepspeed.zero.Init):
    """`zero.Init` for weights that are read afterwards: rank 0 does not send its initial values to the others."""

    def _zero_init_param(self, param: Any) -> None:
        self._convert_to_deepspeed_param(param)
        param.partition()


class WithoutInitialValues(TorchFunctionMode):
    """Leaves out the functions of `torch.nn.init`: the values would be replaced, and drawing them takes longer."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def shard_for_inference(
    config: PretrainedConfig, source: WeightSource, ds_json: dict[str, Any], label: str
) -> MaskedDiffusionModel:
    """A model in eval mode that `build_model` cut over the ranks; every rank must run the same forwards."""
    model = build_model(config, source, ds_json, label).requires_grad_(False)
    set_z3_leaf_modules(model, [family_of(config).layer_class])
    engine, *_ = deepspeed.initialize(model=model.eval(), config=ds_json)
    return engine.module


class Engine(Collectives):
    """A partitioned model that trains, with what the loop needs of DeepSpeed."""

    def __init__(self, root: DiffusionStep, ds_json: dict[str, Any], optim: OptimConfig) -> None:
        self.optim = optim
        zero = ds_json["zero_optimization"]
        self.stage = zero["stage"]
        if self.stage == 3:
            set_z3_leaf_modules(root, [family_of(root.model.config).layer_class])
        is_offloaded = zero.get("offload_optimizer", {}).get("device", "none") != "none"
        if is_offloaded and has_accelerator():
            line = share_cores_beside_gpu(read_launch())
            if line is not None and torch.distributed.get_rank() == 0:
                print(line, flush=True)
        optimizer = make_optimizer(root, optim, is_offloaded)
        self.ds, *_ = deepspeed.initialize(model=root, optimizer=optimizer, config=ds_json)
        if self.stage == 3 and not is_offloaded:
            spare_copies(self.ds.optimizer)
        give_back_memory()  # the weights before DeepSpeed moved them, and its buffers for them
        super().__init__(torch.device(self.ds.device))
        self.root: DiffusionStep = self.ds.module
        self.model: MaskedDiffusionModel = self.root.model
        # micro-batches of a step, over all ranks: DeepSpeed divides by it what is normalised over the step already
        self.loss_factor = self.world_size * int(self.ds.gradient_accumulation_steps())

    def num_parameters(self, only_trained: bool = False) -> int:
        """Parameters of the whole model, or only those that are trained."""
        shapes = [whole_shape(each) for each in self.root.parameters() if each.requires_grad or not only_trained]
        return sum(shape.numel() for shape in shapes)

    def set_learning_rate(self, step: int) -> float:
        """Sets and returns the rate of optimizer step `step`."""
        rate = learning_rate(step, self.optim)
        for group in self.ds.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def forward_backward(
        self, batch: MicroBatch, document_scale: Tensor, dropout_key: DropoutKey, clock: StepClock | None = None
    ) -> StepResult:
        """One micro-batch's forward and backward, from the CPU; gradients add up until `update`.

        `document_scale` (B,) is normalised over the whole step, so that losses add up over micro-batches and ranks.
        """
        clock = clock or StepClock(self)
        scale = (document_scale * self.loss_factor).to(self.device)
        moved = batch.to(self.device)
        with clock.part("forward"):
            loss, result = self.ds(moved, scale, dropout_key)
        clock.add("scoring", result.scoring_seconds)
        with clock.part("backward"):
            self.ds.backward(loss)
        return result

    def end_micro_batch(self) -> None:
        """Ends a micro-batch that another one of the same step follows."""
        self.ds.step()

    def update(self) -> float:
        """The optimizer step; returns the global gradient norm before clipping."""
        self.ds.step()
        norm = self.ds.get_global_grad_norm()
        return float(norm) if norm is not None else float("nan")

    def write_monitor(self, values: dict[str, float], step: int) -> None:
        """Passes scalars to the monitors that the JSON switches on (tensorboard, wandb, csv)."""
        if self.ds.monitor.enabled:
            self.ds.monitor.write_events([(f"train/{name}", value, step) for name, value in values.items()])

    @contextmanager
    def evaluating(self) -> Iterator[MaskedDiffusionModel]:
        """The language model in eval mode without gradients; every rank must run the same forwards inside."""
        self.root.eval()
        with torch.no_grad():
            yield self.model
        self.root.train()


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
