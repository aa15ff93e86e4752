"""The door to DeepSpeed: distributed start, the partitioned model, its steps."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.zero.stage_1_and_2 import INITIAL_MICRO_STEP_ID
from deepspeed.utils import set_z3_leaf_modules
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_utils import local_torch_dtype

from lift_ds.config.deepspeed import as_deepspeed_counts
from lift_ds.config.training import OptimConfig
from lift_ds.data.batch import MicroBatch
from lift_ds.models.families import family_of
from lift_ds.models.head import MaskedDiffusionModel
from lift_ds.models.hollow import WithoutInitialValues, hollow_model
from lift_ds.models.weights import WeightSource, fill_parameters, whole_shape
from lift_ds.ranks.control import allow_open_files
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

from .call_trace import CallTrace
from .extensions import guard_builds, without_inductor
from .gathers import GatherClock
from .monitors import Monitors
from .optimizer import learning_rate, make_optimizer, spare_copies
from .results import StepResult
from .spikes import guard_update
from .step import DiffusionStep, DropoutKey
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
    allow_open_files()
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
        counted = as_deepspeed_counts(ds_json)
        zero_init = CutWithoutData(config_dict_or_path=counted)  # its dtype= means bf16 on CPUs without fp16
        with zero_init, WithoutInitialValues(), local_torch_dtype(dtype):  # else it would copy each to the type
            model = family_of(config).model_class(config)
        torch.nn.Module.to(model, dtype=dtype)
    else:
        model = hollow_model(config)
        torch.nn.Module.to(model, dtype=dtype)
        torch.nn.Module.to_empty(model, device=get_accelerator().current_device_name())
    fill_parameters(chain(model.named_parameters(), model.named_buffers()), source, label)
    return model


class CutWithoutData(deepspeed.zero.Init):
    """`zero.Init` for weights that are read afterwards: rank 0 does not send its initial values to the others."""

    def _zero_init_param(self, param: Any) -> None:
        self._convert_to_deepspeed_param(param)
        param.partition()


def shard_for_inference(
    config: PretrainedConfig, source: WeightSource, ds_json: dict[str, Any], label: str
) -> MaskedDiffusionModel:
    """A model in eval mode that `build_model` cut over the ranks; every rank must run the same forwards."""
    model = build_model(config, source, ds_json, label).requires_grad_(False)
    set_z3_leaf_modules(model, [family_of(config).layer_class])
    engine, *_ = deepspeed.initialize(model=model.eval(), config=as_deepspeed_counts(ds_json))
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
        with without_inductor():
            self.ds, *_ = deepspeed.initialize(model=root, optimizer=optimizer, config=as_deepspeed_counts(ds_json))
        if self.stage == 3 and not is_offloaded:
            spare_copies(self.ds.optimizer)
        self.norm_limit = math.inf  # above which an update is left out
        guard_update(self.ds.optimizer, optimizer, lambda: self.norm_limit)
        give_back_memory()  # the weights before DeepSpeed moved them, and its buffers for them
        super().__init__(torch.device(self.ds.device))
        self.root: DiffusionStep = self.ds.module
        self.model: MaskedDiffusionModel = self.root.model
        self.gathers = GatherClock(self.ds.optimizer, self.device)
        self.monitors = Monitors(self.ds.monitor)
        self.trace = CallTrace(self.root, family_of(self.model.config).layer_class)
        self.is_offloaded = is_offloaded
        # what DeepSpeed divides by, though losses are normalised over the step already
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
        self,
        batch: MicroBatch,
        document_scale: Tensor,
        dropout_key: DropoutKey,
        clock: StepClock | None = None,
        is_last: bool = True,
        balance_factor: float | None = None,
    ) -> StepResult:
        """One micro-batch's forward and backward, from the CPU; gradients add up until the last one of a step.

        `document_scale` (B,) and `balance_factor` are normalised over the whole step, so that losses add up over
        micro-batches and ranks.
        """
        clock = clock or StepClock(self)
        self.ds.set_gradient_accumulation_boundary(is_last)
        with clock.part("forward"):
            factor = None if balance_factor is None else balance_factor * self.loss_factor
            loss, result = self.ds(batch, document_scale * self.loss_factor, dropout_key, self.device, factor)
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

    def warm_up(self, batch: MicroBatch, adds_up: bool) -> float:
        """A micro-batch's forward and backward at no weight, as the first and as the last of a step; nothing stays.

        Twice, because a rank holds more from the second on: by then ZeRO-3 has recorded the order of the modules, so
        that it fetches ahead and keeps what is used again soon, and gradients add up where a step has several
        micro-batches (`adds_up`). AdamW's moments, which DeepSpeed leaves to the first update, are stood in for.
        Returns seconds.
        """
        clock = StepClock(self)
        no_weight = torch.zeros_like(batch.t)  # gradients of 0: whatever they were added to would stay as it is
        moments = self.missing_moments(clock)
        for is_last in (not adds_up, True):
            self.forward_backward(batch, no_weight, (0, 0), clock, is_last)
            if is_last:
                self.drop_gradients()
        clock.read()
        del moments
        return clock.elapsed

    def missing_moments(self, clock: StepClock) -> Tensor | None:
        """As much memory as AdamW's two moments take, written, where there are none yet and they will be here."""
        if self.is_offloaded or any(self.ds.optimizer.optimizer.state.values()):
            return None
        with clock.part("optimizer"):
            share = -(-self.num_parameters(only_trained=True) // self.world_size)
            return torch.ones(2 * share, dtype=torch.float32, device=self.device)

    def drop_gradients(self) -> None:
        """Forgets the gradients since the last update, as an update does; DeepSpeed's counts of steps stay."""
        optimizer = self.ds.optimizer
        self.ds.zero_grad()
        if isinstance(optimizer, BF16_Optimizer):
            optimizer.clear_hp_grads()
            return
        optimizer.zero_grad()  # under ZeRO-3 the next gradients replace those of the rank's part then
        optimizer.reset_cpu_buffers()
        if self.stage == 3:
            self.ds.empty_partition_cache()
            return
        optimizer.micro_step_id = INITIAL_MICRO_STEP_ID
        for held in (optimizer.averaged_gradients, optimizer.all_grad_tensors):
            held.update(dict.fromkeys(held))

    @contextmanager
    def evaluating(self) -> Iterator[MaskedDiffusionModel]:
        """The language model in eval mode without gradients; every rank must run the same forwards inside."""
        self.root.eval()
        with torch.no_grad():
            yield self.model
        self.root.train()
