"""Attention of documents that stand one after the other in a batch of one row; each sees only itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor


@dataclass(frozen=True)
class Segments:
    """The documents of such a row, and their attention.

    Args:
        lengths: Tokens of each.
        bounds: int32 (documents + 1,), where they start, and the end of the last.
    """

    lengths: list[int]
    bounds: Tensor

    @staticmethod
    def of(lengths: Tensor) -> Segments:
        """Segments of int64 (documents,) lengths."""
        return Segments(lengths.tolist(), F.pad(lengths.cumsum(0), (1, 0)).to(torch.int32))

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
        """Attention of (1, H, L, head_dim): a varlen kernel on GPUs in bf16, else document by document."""
        grouped = query.shape[1] != key.shape[1]
        if query.is_cuda and query.dtype != torch.float32 and not dropout:
            from torch.nn.attention.varlen import varlen_attn

            query, key, value = (heads[0].transpose(0, 1).contiguous() for heads in (query, key, value))
            bounds, longest = self.bounds, max(self.lengths)
            packed = varlen_attn(query, key, value, bounds, bounds, longest, longest, enable_gqa=grouped)
            return cast(Tensor, packed).transpose(0, 1)[None]
        parts = zip(*(heads.split(self.lengths, dim=2) for heads in (query, key, value)), strict=True)
        attended = [F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, enable_gqa=grouped) for q, k, v in parts]
        return torch.cat(attended, dim=2)
