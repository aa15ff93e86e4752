"""Which attention a model trains with, chosen once: a varlen kernel, torch's SDPA, or its plain mathematics.

- `varlen`: documents one after the other, without padding, in one call of FlashAttention. Half precision on a GPU.
- `sdpa`: `scaled_dot_product_attention`. In rows, with a mask only where something is padded; packs go document by
  document.
- `math`: the same through its plain implementation, the reference: every product is written to memory.

cuDNN is left out of SDPA's choice: with a mask its backward gives NaN at some lengths (pytorch issue 196678), and it
builds a plan for every shape, 23 to 400 ms each, where documents have a new length each step.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, cast, get_args

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PretrainedConfig

from lift_ds.ranks.moving import moved

Kernel = Literal["varlen", "sdpa", "math"]
KERNELS = get_args(Kernel)
VARLEN_HEAD_DIMS = range(8, 257, 8)
WITHOUT_CUDNN = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def why_no_varlen(device: torch.device, dtype: torch.dtype, head_dim: int, dropout: float) -> str | None:
    """What keeps documents from going through the varlen kernel; `None` where nothing does."""
    if device.type != "cuda":
        return f"it needs a GPU, not {device.type}"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return f"{torch.cuda.get_device_name(device)} is older than Ampere (compute capability 8.0)"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"it computes in bf16, not {str(dtype).removeprefix('torch.')}"
    if head_dim not in VARLEN_HEAD_DIMS:
        return f"heads of width {head_dim}; allowed: multiples of 8 up to 256"
    if dropout:
        return f"the model's own attention dropout is {dropout}, which it does not have"
    if find_varlen() is None:
        return f"torch {torch.__version__} has no torch.nn.attention.varlen"
    return None


def choose_attention(
    config: PretrainedConfig, wanted: Kernel | Literal["auto"], device: torch.device, dtype: torch.dtype
) -> Kernel:
    """The kernel of a model: what is wanted, or with `auto` the varlen kernel where it runs, else SDPA.

    Args:
        config: The model's.
        wanted: `model.attention`.
        device: What computes.
        dtype: In which type.

    Raises:
        ValueError: The varlen kernel is wanted, and cannot run.
    """
    num_heads = getattr(config, "num_attention_heads", None) or config.n_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // num_heads
    reason = why_no_varlen(device, dtype, head_dim, getattr(config, "attention_dropout", 0.0))
    if wanted == "varlen" and reason is not None:
        raise ValueError(f"model.attention=varlen: {reason}; allowed here: auto, sdpa, math.")
    if wanted != "auto":
        return wanted
    return "varlen" if reason is None else "sdpa"


@contextmanager
def attention_kernels(kernel: Kernel) -> Iterator[None]:
    """SDPA inside chooses among its kernels but cuDNN's, or takes its plain mathematics; also in backward passes."""
    with sdpa_kernel([SDPBackend.MATH] if kernel == "math" else WITHOUT_CUDNN):
        yield


def find_varlen() -> Callable[..., Tensor] | None:
    """The varlen attention of torch, where it has one."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return cast(Callable[..., Tensor], varlen_attn)


@dataclass(frozen=True)
class Segments:
    """Attention of documents that stand one after the other in a batch of one row; each sees only itself.

    Args:
        lengths: Tokens of each.
        bounds: int32 (documents + 1,), where they start, and the end of the last.
        kernel: What computes it.
    """

    lengths: list[int]
    bounds: Tensor
    kernel: Kernel = "sdpa"

    @staticmethod
    def of(lengths: list[int], device: torch.device, kernel: Kernel = "sdpa") -> Segments:
        """Those of documents' lengths, which the host knows."""
        (bounds,) = moved([torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)], device)
        return Segments(lengths, bounds, kernel)

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
        """Attention of (1, H, L, head_dim)."""
        grouped = query.shape[1] != key.shape[1]
        if self.kernel == "varlen":
            return self.in_one_call(query, key, value, grouped)
        parts = zip(*(heads.split(self.lengths, dim=2) for heads in (query, key, value)), strict=True)
        attended = [F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, enable_gqa=grouped) for q, k, v in parts]
        return torch.cat(attended, dim=2)

    def in_one_call(self, query: Tensor, key: Tensor, value: Tensor, grouped: bool) -> Tensor:
        """The varlen kernel's; before torch 2.12 it has no grouped heads, so that keys and values are repeated."""
        attend = find_varlen()
        assert attend is not None, "chosen without asking `why_no_varlen`"
        options = {}
        if grouped and "enable_gqa" in inspect.signature(attend).parameters:
            options["enable_gqa"] = True
        elif grouped:
            repeats = query.shape[1] // key.shape[1]
            key, value = (heads.repeat_interleave(repeats, dim=1) for heads in (key, value))
        query, key, value = (heads[0].transpose(0, 1).contiguous() for heads in (query, key, value))
        longest = max(self.lengths)
        packed = attend(query, key, value, self.bounds, self.bounds, longest, longest, **options)
        return packed.transpose(0, 1)[None]
