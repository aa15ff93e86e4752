"""Models without data: names, shapes and modules of a config, on the meta device."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch.overrides import TorchFunctionMode
from transformers import PretrainedConfig

from .layers import MaskedDiffusionModel
from .registry import family_of


class WithoutInitialValues(TorchFunctionMode):
    """Leaves out the functions of `torch.nn.init`: the values would be replaced, and drawing them takes longer."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def hollow_model(config: PretrainedConfig) -> MaskedDiffusionModel:
    """A config's model without data."""
    with torch.device("meta"), WithoutInitialValues():
        return cast(MaskedDiffusionModel, family_of(config).model_class(config))
