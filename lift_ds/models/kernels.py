"""Which kernels compute norms, rotation and gates, chosen once: Liger's on a GPU, or plain torch.

- `liger`: one kernel for each, forward and backward, of the package liger-kernel (`pip install "lift_ds[gpu]"`).
- `eager`: `elementwise.EAGER`. Where layers are compiled, too: torch's compiler fuses these operations itself.

Liger's are the families' arithmetic: its norm casts back before it multiplies with the weight (its mode `llama`), its
rotation is the half-split one and computes in the tables' float32, its gate rounds silu to the model's type. Gradients
are written into the rotation's and the gate's own inputs, which no other operation keeps; those of the norm are not.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

import torch
from packaging.version import Version
from torch import Tensor, nn

from .elementwise import EAGER, Elementwise, ElementwiseModule

Kernels = Literal["liger", "eager"]
OLDEST_LIGER = "0.8"


def why_no_liger(device: torch.device, is_compiled: bool) -> str | None:
    """What keeps a model from Liger's kernels; `None` where nothing does."""
    if is_compiled:
        return "model.compile=true fuses the same operations"
    if device.type != "cuda":
        return f"it needs a GPU, not {device.type}"
    try:
        found = version("liger-kernel")
        if Version(found) < Version(OLDEST_LIGER):
            return f"liger-kernel {found} is older than {OLDEST_LIGER}"
        liger_kernels()
    except PackageNotFoundError:
        return 'liger-kernel is not installed (pip install "lift_ds[gpu]")'
    except ImportError as error:
        return f"liger-kernel does not import: {error}"
    return None


def choose_kernels(wanted: Kernels | Literal["auto"], device: torch.device, is_compiled: bool) -> tuple[Kernels, str]:
    """The kernels of a model, and for `auto` on a GPU why they are not Liger's, else an empty text.

    Args:
        wanted: `model.kernels`.
        device: What computes.
        is_compiled: Whether its layers are compiled.

    Raises:
        ValueError: Liger's are wanted, and cannot run.
    """
    reason = why_no_liger(device, is_compiled)
    if wanted == "liger" and reason is not None:
        raise ValueError(f"model.kernels=liger: {reason}; allowed here: auto, eager.")
    if wanted == "eager":
        return "eager", ""
    if reason is None:
        return "liger", ""
    return "eager", reason if device.type == "cuda" else ""


def use_kernels(model: nn.Module, kernels: Kernels) -> None:
    """Has all layers and norms of a model compute with them."""
    functions = liger_kernels() if kernels == "liger" else EAGER
    for module in model.modules():
        if isinstance(module, ElementwiseModule):
            module.elementwise = functions


@cache
def liger_kernels() -> Elementwise:
    """Liger's functions.

    Raises:
        ImportError: It is not installed, or has other names.
    """
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction
    from liger_kernel.ops.rope import LigerRopeFunction
    from liger_kernel.ops.swiglu import LigerSiLUMulFunction

    def rms_norm(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
        normed: Tensor = LigerRMSNormFunction.apply(hidden, weight, eps, 0.0, "llama", False)  # not in place
        return normed

    def rotate(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        rotated: tuple[Tensor, Tensor] = LigerRopeFunction.apply(query, key, cos, sin)
        return rotated

    def gate(gates: Tensor, values: Tensor) -> Tensor:
        gated: Tensor = LigerSiLUMulFunction.apply(gates, values)
        return gated

    return Elementwise(rms_norm, rotate, gate)
