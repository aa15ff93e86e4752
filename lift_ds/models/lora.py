"""Low-rank adapters, through peft, inside the model that they adapt.

    W x  becomes  W x + (alpha / rank) B A x,   A: (rank, in), B: (out, rank), B = 0 at the start

Source: LoRA (arXiv 2106.09685). The adapters are put into the model in place, so that `encode` and `head` stay.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor, nn

from lift_ds.rng import Stream, keyed_generator
from lift_ds.storage.safetensors_file import READABLE
from lift_ds.storage.safetensors_folder import ADAPTER_PREFIX, ADAPTER_WEIGHTS
from lift_ds.storage.staging import staged_folder

from .experts import Experts
from .keyed_dropout import KeyedDropout
from .layer_sizes import is_target
from .registry import head_names

BASE_LAYER = ".base_layer."
LAYER = re.compile(r"^.*\.\d+\.")  # what stands before a matrix's name within its decoder layer
DOWN = ".lora_A.default.weight"
UP = ".lora_B.default.weight"


def add_adapters(model: nn.Module, rank: int, alpha: float, dropout: float, targets: list[str], seed: int) -> None:
    """Adds adapters to matrices of a model, whole or partitioned, in place; everything else is frozen.

    Args:
        model: Has its weights.
        rank: Rank of the adapters.
        alpha: The update is multiplied by alpha / rank.
        dropout: Probability on the adapters' input.
        targets: Ends of the matrices' names, of one part (`q_proj`) or more (`mlp.gate_proj`), as peft reads them.
        seed: Draws the new matrices A.

    Raises:
        ValueError: A target is no matrix of the model.
    """
    inject_adapters(model, rank, alpha, dropout, targets)
    for index, (name, parameter) in enumerate(model.named_parameters()):
        if name.endswith(DOWN):
            generator = keyed_generator(seed, 1, index, Stream.INITIAL_WEIGHTS)
            bound = 1.0 / math.sqrt(parameter.shape[1])
            drawn = generator.uniform(-bound, bound, tuple(parameter.shape)).astype("float32")
            parameter.data.copy_(torch.from_numpy(drawn))


def inject_adapters(
    model: nn.Module,
    rank: int,
    alpha: float,
    dropout: float,
    targets: list[str],
    dropout_class: type[KeyedDropout] = KeyedDropout,
) -> None:
    """Adds adapters without drawing their values, as `add_adapters` does; a model on the meta device takes them, too.

    Raises:
        ValueError: A target is no matrix of the model, or one of its experts'.
    """
    check_targets(model, targets)
    inject_adapter_in_model(peft_config(rank, alpha, dropout, targets), model)
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    if dropout:
        for index, layer in enumerate(layers):
            layer.lora_dropout["default"] = dropout_class(dropout, index)


def check_targets(model: nn.Module, targets: list[str]) -> None:
    """Checks that every target names matrices, and none of experts, whose products know no adapters.

    Raises:
        ValueError: One does not.
    """
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    banks = [name for name, module in model.named_modules() if isinstance(module, Experts)]
    of_experts = {name for name in names if any(name.startswith(f"{bank}.") for bank in banks)}
    others = [name for name in names if name not in of_experts and not re.fullmatch(head_pattern(), name)]
    in_layers = {LAYER.sub("", name) for name in others}
    shared_parts = {name.rsplit(".", 1)[-1] for name in of_experts}
    last_parts = {name.rsplit(".", 1)[-1] for name in in_layers} - shared_parts
    named = last_parts | {name for name in in_layers if name.rsplit(".", 1)[-1] in shared_parts}
    unknown = [target for target in targets if not any(is_target(name, [target]) for name in in_layers | shared_parts)]
    if unknown:
        raise ValueError(
            f"lora.targets: {', '.join(sorted(unknown))} not in the model; it has {', '.join(sorted(named))}."
        )
    refused = [target for target in targets if any(is_target(name, [target]) for name in of_experts)]
    if refused:
        raise ValueError(
            f"lora.targets: {', '.join(sorted(refused))} are matrices of experts, which take no adapters; allowed: "
            f"{', '.join(sorted(named))}."
        )


def present_targets(model: nn.Module, targets: list[str]) -> list[str]:
    """Those that name matrices of a model, which may have fewer layers than the one that they are meant for."""
    matrices = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return [target for target in targets if any(is_target(name, [target]) for name in matrices)]


def head_pattern() -> str:
    """Regular expression of the heads' names in every family."""
    return f"({'|'.join('.*' + re.escape(name) for name in head_names())})"


def peft_config(rank: int, alpha: float, dropout: float, targets: list[str]) -> LoraConfig:
    """What peft is told about the adapters, in a run and in their folder; see `add_adapters`."""
    last_parts = {name.rsplit(".", 1)[-1] for name in head_names()}
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        lora_dropout=dropout,
        target_modules=targets,
        exclude_modules=head_pattern() if last_parts & set(targets) else None,
    )


def low_rank_update(down: Tensor, up: Tensor, scale: float) -> Tensor:
    """Scale * B A, in the order of peft's own merge, so that float32 results are bit-equal."""
    return (up @ down).mul_(scale)


def split_adapters(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The base's weights under their official names, and the adapters under PEFT's (`base_model.model.model...`)."""
    base, adapters = {}, {}
    for name, tensor in state.items():
        if name.endswith((DOWN, UP)):
            adapters[ADAPTER_PREFIX + name.replace(".default.weight", ".weight")] = tensor
        else:
            base[name.replace(BASE_LAYER, ".")] = tensor
    return base, adapters


def save_adapters(
    adapters: dict[str, Tensor],
    output: Path,
    config: LoraConfig,
    add_files: Callable[[Path], object] = lambda folder: None,
) -> None:
    """Writes adapters in PEFT's own format, as `peft.PeftModel.from_pretrained` loads them.

    Args:
        adapters: Weights under PEFT's names, see `split_adapters`.
        output: Folder to create.
        config: Names the base model.
        add_files: Writes what else belongs to them into the folder.

    Raises:
        ValueError: There are no adapters, or `output` exists and holds something.
    """
    if not adapters:
        raise ValueError(f"{output}: the weights hold no adapters; was lora.rank 0?")
    config.inference_mode = True
    with staged_folder(output) as folder:
        config.save_pretrained(str(folder))
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in adapters.items()}
        save_file(tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        add_files(folder)
        for path in folder.iterdir():
            path.chmod(READABLE)
