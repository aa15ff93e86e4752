"""Sizes of a model and its adapters, from a config alone; and configs that are known without files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import PretrainedConfig

from lift_ds.models.dream import DreamConfig
from lift_ds.models.families import family_of, read_config
from lift_ds.models.llada import LLaDAConfig
from lift_ds.models.llada2 import LLaDA2MoeConfig
from lift_ds.models.sdar import SDARConfig
from lift_ds.models.settings import LoraConfig
from lift_ds.models.weights import BUILTIN_BASE, resolve_folder

from .live_memory import hollow_with_adapters

DREAM_7B: dict[str, Any] = {
    "mask_token_id": 151666,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "max_position_embeddings": 131072,
    "rope_theta": 1000000.0,
}
SDAR_8B: dict[str, Any] = {
    "mask_token_id": 151669,
    "block_size": 4,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
    "rope_theta": 1000000.0,
}
LLADA2_MINI: dict[str, Any] = {
    "mask_token_id": 156895,
    "block_size": 32,
    "hidden_size": 2048,
    "intermediate_size": 5120,
    "num_hidden_layers": 20,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "vocab_size": 157184,
    "max_position_embeddings": 16384,
    "rope_theta": 600000.0,
    "partial_rotary_factor": 0.5,
    "attention_dropout": 0.0,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 512,
    "n_group": 8,
    "num_experts": 256,
    "num_experts_per_tok": 8,
    "num_shared_experts": 1,
    "rms_norm_eps": 1e-6,
    "routed_scaling_factor": 2.5,
    "topk_group": 4,
}
KNOWN = {
    "8b": "LLaDA-8B",
    "dream-7b": "Dream-7B",
    "sdar-8b": "SDAR-8B",
    "llada2-mini": "LLaDA2-mini",
    BUILTIN_BASE: "the small base that the package carries",
}


def config_of(name: str) -> PretrainedConfig:
    """The config of a folder, a hub name, or a size that is known without files.

    Raises:
        ValueError: There is no such model; the message lists what is known.
    """
    if name == "8b":
        return LLaDAConfig(mask_token_id=126336)
    if name == "dream-7b":
        return DreamConfig(**DREAM_7B)
    if name == "sdar-8b":
        return SDARConfig(**SDAR_8B)
    if name == "llada2-mini":
        return LLaDA2MoeConfig(**LLADA2_MINI)
    if name != BUILTIN_BASE and not Path(name).is_dir() and "/" not in name:
        known = ", ".join(f"{size} ({what})" for size, what in KNOWN.items())
        raise ValueError(f"--model {name}: no folder, no hub name (owner/name), and no known size: {known}.")
    return read_config(resolve_folder(name, with_weights=False))


@dataclass(frozen=True)
class Sizes:
    """Elements of a model's parameters.

    Args:
        total: All, adapters included.
        trained: Those that are trained.
        layer: The largest decoder layer's, adapters included; ZeRO-3 gathers it as a whole.
        layer_trained: The trained ones of these.
        largest: The largest matrix outside the layers, or inside where that is larger.
        largest_trained: The same of those that are trained; 0 where none is.
        small: Those of parameters with fewer elements than `few`, which ZeRO-3 keeps whole.
        num_layers: N.
    """

    total: int
    trained: int
    layer: int
    layer_trained: int
    largest: int
    largest_trained: int
    small: int
    num_layers: int
    known: ClassVar[dict[str, Sizes]] = {}

    @staticmethod
    def of(config: PretrainedConfig, lora: LoraConfig, few: int = 0) -> Sizes:
        """Of a config with adapters, if any."""
        asked = f"{type(config)} {config.to_json_string(use_diff=False)} {lora!r} {few}"
        if asked not in Sizes.known:  # a plan asks often, and a model of many experts takes seconds to make
            Sizes.known[asked] = Sizes.counted(config, lora, few)
        return Sizes.known[asked]

    @staticmethod
    def counted(config: PretrainedConfig, lora: LoraConfig, few: int) -> Sizes:
        """Those of a model that is made to be counted."""
        model = hollow_with_adapters(config, int(config.num_hidden_layers), torch.float32, lora)
        layers = [each for each in model.modules() if isinstance(each, family_of(config).layer_class)]
        sizes = [sum(parameter.numel() for parameter in each.parameters()) for each in layers]
        inside = list(layers[sizes.index(max(sizes))].parameters())
        everything = list(model.parameters())
        trained = [each for each in everything if each.requires_grad]
        return Sizes(
            total=sum(each.numel() for each in everything),
            trained=sum(each.numel() for each in trained),
            layer=sum(each.numel() for each in inside),
            layer_trained=sum(each.numel() for each in inside if each.requires_grad),
            largest=max(each.numel() for each in everything),
            largest_trained=max(each.numel() for each in trained),
            small=sum(each.numel() for each in everything if each.numel() < few),
            num_layers=len(layers),
        )
