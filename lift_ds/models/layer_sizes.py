"""How many elements the largest decoder layer has: what ZeRO-3 gathers, and a backward reduces, as one."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PretrainedConfig

from .registry import family_of


@dataclass(frozen=True)
class LayerSizes:
    """Elements of each parameter of the largest decoder layer.

    Args:
        width: D of the model.
        frozen: Of those that are not trained.
        trained: Of those that are.
    """

    width: int
    frozen: tuple[int, ...]
    trained: tuple[int, ...]

    @staticmethod
    def of(config: PretrainedConfig, lora_rank: int = 0, lora_targets: Collection[str] = ()) -> LayerSizes:
        """Of a config, with adapters of a rank at the matrices of these names, or all trained; no weights are made."""
        family = family_of(config)
        with torch.device("meta"):
            model: nn.Module = family.model_class(config)
        layers = [module for module in model.modules() if isinstance(module, family.layer_class)]
        layer = max(layers, key=lambda each: sum(parameter.numel() for parameter in each.parameters()))
        weights = tuple(parameter.numel() for parameter in layer.parameters())
        if not lora_rank:
            return LayerSizes(config.hidden_size, (), weights)
        linears = [(name, module) for name, module in layer.named_modules() if isinstance(module, nn.Linear)]
        adapted = [linear for name, linear in linears if name.rsplit(".", 1)[-1] in lora_targets]
        adapters = tuple(lora_rank * width for linear in adapted for width in linear.weight.shape)
        return LayerSizes(config.hidden_size, weights, adapters)

    def above(self, threshold: int) -> int:
        """Elements of the parameters that are larger than a threshold."""
        return sum(size for size in (*self.frozen, *self.trained) if size > threshold)
