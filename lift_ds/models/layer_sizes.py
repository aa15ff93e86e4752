"""A model's decoder layers without data, and how many elements the largest has: what ZeRO-3 gathers as one."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from torch import nn
from transformers import PretrainedConfig

from .experts import Experts
from .hollow import hollow_model
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
        layer = max(decoder_layers(config), key=lambda each: sum(parameter.numel() for parameter in each.parameters()))
        weights = tuple(parameter.numel() for parameter in layer.parameters())
        if not lora_rank:
            return LayerSizes(config.hidden_size, (), weights)
        return LayerSizes(config.hidden_size, weights, adapter_sizes(layer, lora_rank, lora_targets))

    def above(self, threshold: int) -> int:
        """Elements of the parameters that are larger than a threshold."""
        return sum(size for size in (*self.frozen, *self.trained) if size > threshold)


def decoder_layers(config: PretrainedConfig) -> list[nn.Module]:
    """All decoder layers of a config's model, on the meta device."""
    layer_class = family_of(config).layer_class
    return [module for module in hollow_model(config).modules() if isinstance(module, layer_class)]


def linears_of(layer: nn.Module) -> list[tuple[str, nn.Linear]]:
    """A layer's matrices, each with its name in the layer."""
    return [(name, module) for name, module in layer.named_modules() if isinstance(module, nn.Linear)]


def is_target(name: str, targets: Collection[str]) -> bool:
    """Whether a matrix is one of those that get adapters: its name, or the end of it, is a target, as peft has it."""
    return any(name == target or name.endswith(f".{target}") for target in targets)


def used_elements(layer: nn.Module, config: PretrainedConfig) -> int:
    """Elements of a layer's matrices that a token goes through: of a mixture's experts, as many as it goes to."""
    everything = sum(linear.weight.numel() for _, linear in linears_of(layer))
    for experts in (module for module in layer.modules() if isinstance(module, Experts)):
        unused = len(experts) - int(config.num_experts_per_tok)
        everything -= unused * sum(linear.weight.numel() for _, linear in linears_of(experts[0]))
    return everything


def adapter_sizes(layer: nn.Module, rank: int, targets: Collection[str]) -> tuple[int, ...]:
    """Elements of each matrix of a layer's adapters."""
    adapted = [linear for name, linear in linears_of(layer) if is_target(name, targets)]
    return tuple(rank * width for linear in adapted for width in linear.weight.shape)
