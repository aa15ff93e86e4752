"""Low-rank adapters, through peft, inside the model that they adapt.

    W x  becomes  W x + (alpha / rank) B A x,   A: (rank, in), B: (out, rank), B = 0 at the start

Source: LoRA (arXiv 2106.09685). The adapters are put into the model in place, so that `encode` and `head` stay.
"""

from __future__ import annotations

import math

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from lift_ds.rng import Stream, keyed_generator

from .keyed_dropout import KeyedDropout

BASE = ".base_layer.weight"
DOWN = ".lora_A.default.weight"
UP = ".lora_B.default.weight"
HEAD = r".*transformer\.ff_out"


def add_adapters(model: nn.Module, rank: int, alpha: float, dropout: float, targets: list[str], seed: int) -> None:
    """Adds adapters to the named matrices, in place; everything else is frozen.

    Args:
        model: A model with its weights loaded, whole or partitioned.
        rank: Rank of the adapters.
        alpha: Scale; the update is multiplied by alpha / rank.
        dropout: Dropout on the adapters' input.
        targets: Last parts of the names of the matrices.
        seed: Seed of the new matrices A.

    Raises:
        ValueError: A target is no matrix of the model.
    """
    names = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    unknown = sorted(set(targets) - names)
    if unknown:
        raise ValueError(f"lora.targets: {', '.join(unknown)} not in the model; it has {', '.join(sorted(names))}.")
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        lora_dropout=dropout,
        target_modules=targets,
        exclude_modules=HEAD,
    )
    inject_adapter_in_model(config, model)
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    if dropout:
        for place, layer in enumerate(layers):
            layer.lora_dropout["default"] = KeyedDropout(dropout, place)
    for place, (name, parameter) in enumerate(model.named_parameters()):
        if name.endswith(DOWN):
            generator = keyed_generator(seed, 1, place, Stream.INITIAL_WEIGHTS)
            bound = 1.0 / math.sqrt(parameter.shape[1])
            drawn = generator.uniform(-bound, bound, tuple(parameter.shape)).astype("float32")
            parameter.data.copy_(torch.from_numpy(drawn))


def merge_adapters(state: dict[str, Tensor], rank: int, alpha: float) -> dict[str, Tensor]:
    """Weights under their official names, with every adapter added to its matrix.

    Args:
        state: float32 weights of a model with adapters (one without passes unchanged).
        rank: Rank of the adapters.
        alpha: Their scale.
    """
    merged = {}
    for name, tensor in state.items():
        if name.endswith(BASE):
            stem = name.removesuffix(BASE)
            merged[f"{stem}.weight"] = tensor + (alpha / rank) * (state[stem + UP] @ state[stem + DOWN])
        elif not name.endswith((DOWN, UP)):
            merged[name] = tensor
    return merged
