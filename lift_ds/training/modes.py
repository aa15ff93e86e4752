"""How the modules of a model run for a while: without dropout, in another type; and whether they draw numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


def scoring_autocast(device: torch.device, in_bf16: bool) -> torch.autocast:
    """The types of a scoring pass: bf16, or what the caller has.

    No cache: it would keep a copy of every weight, also after ZeRO-3 let go of the weight.
    """
    dtype = torch.bfloat16 if in_bf16 else torch.get_autocast_dtype(device.type)
    return torch.autocast(device.type, dtype, in_bf16 or torch.is_autocast_enabled(device.type), cache_enabled=False)


@contextmanager
def without_dropout(root: nn.Module) -> Iterator[None]:
    """All modules in eval mode for the while; each goes back to its own mode."""
    training = [module for module in root.modules() if module.training]
    root.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def has_own_dropout(root: nn.Module) -> bool:
    """Whether a dropout module other than the adapters', or a dropout field of a config, is above 0."""
    modules = list(root.modules())
    fields = ("attention_dropout", "residual_dropout", "embedding_dropout")
    configs = [module.config for module in modules if hasattr(module, "config")]
    return any(isinstance(module, nn.Dropout) and module.p > 0 for module in modules) or any(
        getattr(config, field, 0) for config in configs for field in fields
    )
