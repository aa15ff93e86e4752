"""The only door to DeepSpeed: distributed start, the partitioned model, the optimizer."""

from __future__ import annotations

from collections.abc import Iterator
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

from lift_ds.config.training import OptimConfig
from lift_ds.data.batch import MicroBatch
from lift_ds.models.families import family_of
from lift_ds.models.head import MaskedDiffusionModel
from lift_ds.models.weights import WeightSource, fill_parameters, whole_shape
from lift_ds.ranks.launch import Launch, check_device, share_cores
from lift_ds.ranks.meeting import meet
from lift_ds.ranks.shares import Collectives

from .extensions import guard_builds, leave_out_shared_memory
from .learning_rate import learning_rate
from .step import DiffusionStep, DropoutKey, StepResult


def has_accelerator() -> bool:
    """Whether DeepSpeed runs on something other than the CPU."""
    return bool(get_accelerator().device_name() != "cpu")


def current_device() -> torch.device:
    """Where this rank computes."""
    return torch.device(get_accelerator().current_device_name())


def start_distributed(launch: Launch) -> None:
    """Joins the process group and takes this rank's device; CPU ranks share the cores.

    Raises:
        RuntimeError: This rank has no device of its own, or the ranks do not meet.
    """
    if has_accelerator():
        check_device(launch, get_accelerator().device_count())
    else:
        share_cores(launch)
    get_accelerator().set_device(launch.local_rank)
    meet(launch)
    guard_builds()
    leave_out_shared_memory()
    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)


def build_model(config: PretrainedConfig, source: WeightSource, ds_json: dict[str, Any], label: str) -> PreTrainedModel:
    """A model with its weights; under ZeRO-3 it is cut from the start, and each rank reads only its own part.

    Args:
        config: The model's config.
        source: Its weights.
        ds_json: Resolved DeepSpeed JSON.
        label: What to call the weights in messages.

    Raises:
        ValueError: Names or shapes of the weights do not fit the config.
    """
    dtype = torch.bfloat16 if ds_json["bf16"]["enabled"] else torch.float32
    if ds_json["zero_optimization"]["stage"] == 3:
        zero_init = CutWithoutData(config_dict_or_path=ds_json)  # its dtype= means bf16 on CPUs without fp16
        with zero_init, WithoutInitialValues(), default_dtype(dtype):
            model = family_of(config).model_class(config)
        torch.nn.Module.to(model, dtype=dtype)
    else:
        with torch.device("meta"):
            model = family_of(config).model_class(config)
        torch.nn.Module.to(model, dtype=dtype)
        torch.nn.Module.to_empty(model, device=get_accelerator().current_device_name())
    fill_parameters(model.named_parameters(), source, label)
    return model


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """New tensors have this type: DeepSpeed converts others, which writes a whole copy of each."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class CutWithoutData(deepspeed.zero.Init):
    """`zero.Init` for weights that are read afterwards: rank 0 does not send its initial values to the others."""

    def _zero_init_param(self, param: Any) -> None:
        self._convert_to_deepspeed_param(param)
        param.partition()


class WithoutInitialValues(TorchFunctionMode):
    """Leaves out the functions of `torch.nn.init`: the values would be replaced, and drawing them takes longer."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Calls any other function as it is."""
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def shard_for_inference(
    config: PretrainedConfig, source: WeightSource, ds_json: dict[str, Any], label: str
) -> MaskedDiffusionModel:
    """A model in eval mode whose weights are cut over the ranks; every rank must run the same forwards.

    Args:
        config: The model's config.
        source: Its weights.
        ds_json: Resolved DeepSpeed JSON of stage 3.
        label: What to call the weights in messages.

    Raises:
        ValueError: Names or shapes of the weights do not fit the config.
    """
    model = build_model(config, source, ds_json, label).requires_grad_(False)
    set_z3_leaf_modules(model, [family_of(config).layer_class])
    engine, *_ = deepspeed.initialize(model=model.eval(), config=ds_json)
    return engine.module


class Engine(Collectives):
    """A partitioned model that trains, with what the loop needs of DeepSpeed.

    Args:
        root: The root module with its model.
        ds_json: Resolved DeepSpeed JSON.
        optim: Optimizer and schedule.
    """

    def __init__(self, root: DiffusionStep, ds_json: dict[str, Any], optim: OptimConfig) -> None:
        """Marks the decoder layers as units and hands everything to DeepSpeed."""
        self.optim = optim
        zero = ds_json["zero_optimization"]
        self.stage = zero["stage"]
        if self.stage == 3:
            set_z3_leaf_modules(root, [family_of(root.model.config).layer_class])
        offload = zero.get("offload_optimizer", {}).get("device", "none")
        optimizer = make_optimizer(root, optim, is_offloaded=offload != "none")
        self.ds, *_ = deepspeed.initialize(model=root, optimizer=optimizer, config=ds_json)
        super().__init__(torch.device(self.ds.device))
        self.num_micro_batches = int(self.ds.gradient_accumulation_steps())

    @property
    def root(self) -> DiffusionStep:
        """The root module inside DeepSpeed's engine."""
        return self.ds.module

    @property
    def model(self) -> MaskedDiffusionModel:
        """The language model inside the root module."""
        return self.root.model

    @property
    def loss_factor(self) -> int:
        """What a loss that is normalised over the whole step is multiplied by: DeepSpeed divides by the same."""
        return self.world_size * self.num_micro_batches

    def num_parameters(self, only_trained: bool = False) -> int:
        """Parameters of the whole model, or only those that are trained."""
        parameters = self.root.parameters()
        counted = [parameter for parameter in parameters if parameter.requires_grad or not only_trained]
        return sum(whole_shape(parameter).numel() for parameter in counted)

    def set_learning_rate(self, step: int) -> float:
        """Sets and returns the rate of optimizer step `step`."""
        rate = learning_rate(step, self.optim)
        for group in self.ds.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def forward_backward(self, batch: MicroBatch, document_scale: Tensor, dropout_key: DropoutKey) -> StepResult:
        """One micro-batch's forward and backward; gradients add up until `update`.

        Args:
            batch: On the CPU.
            document_scale: float32 (B,), normalised over the whole step, all ranks and micro-batches.
            dropout_key: See `DiffusionStep.forward`.

        Returns:
            What it shows; its loss adds up over micro-batches and ranks.
        """
        scale = (document_scale * self.loss_factor).to(self.device)
        loss, result = self.ds(batch.to(self.device), scale, dropout_key)
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


def parameter_groups(root: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices with weight decay, vectors (norms, biases) without."""
    trained = [parameter for parameter in root.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trained if len(whole_shape(parameter)) > 1]
    vectors = [parameter for parameter in trained if len(whole_shape(parameter)) <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def make_optimizer(root: nn.Module, optim: OptimConfig, is_offloaded: bool) -> torch.optim.Optimizer:
    """AdamW; DeepSpeed's own where the optimizer state is kept off the accelerator."""
    groups = parameter_groups(root, optim.weight_decay)
    betas = (optim.beta1, optim.beta2)
    if is_offloaded:
        return DeepSpeedCPUAdam(groups, lr=optim.lr, betas=betas, eps=optim.eps, adamw_mode=True)
    return torch.optim.AdamW(groups, lr=optim.lr, betas=betas, eps=optim.eps)
