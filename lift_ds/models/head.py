"""What training asks of a model: hidden states of chosen rows, of which alone the vocabulary matrix is needed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from lift_ds.method.loss import chunked_gold_logprob

from .layers import MaskedDiffusionModel


class LogitsModel(nn.Module):
    """A model whose `encode` gives logits, and whose `head` has nothing left to multiply them with.

    Args:
        model: Called with `input_ids`, and with `attention_mask` where one is given; returns logits (B, L, V), or
            something that has them as `logits` or as its first entry. Row i predicts token i, or token i + 1 with
            `right_shift_logits`.
        mask_token_id: What is written on masked positions.
        right_shift_logits: Whether the model, like those made from autoregressive ones, predicts the next token.
    """

    def __init__(self, model: nn.Module, mask_token_id: int, right_shift_logits: bool = False) -> None:
        super().__init__()
        self.model = model
        self.config = SimpleNamespace(mask_token_id=mask_token_id)
        self.right_shift_logits = right_shift_logits

    def encode(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(B, L, V) logits; row i predicts token i."""
        given = {} if attention_mask is None or bool(attention_mask.all()) else {"attention_mask": attention_mask}
        output = self.model(input_ids=input_ids, **given)
        logits: Tensor = output[0] if isinstance(output, tuple) else getattr(output, "logits", output)
        return torch.cat([logits[:, :1], logits[:, :-1]], 1) if self.right_shift_logits else logits

    def head(self, hidden: Tensor, through: Any) -> Any:
        """What `through` makes of rows of logits; there is no matrix."""
        return through(hidden, None)


@dataclass(frozen=True)
class Segments:
    """Attention of documents that stand one after the other in a batch of one row; each sees only itself."""

    lengths: list[int]  # tokens of each
    bounds: Tensor  # int32 (documents + 1,), where they start, and the end of the last

    @staticmethod
    def of(lengths: Tensor) -> Segments:
        """Those of int64 (documents,) lengths."""
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


def encode_rows(
    model: MaskedDiffusionModel, noised_ids: Tensor, rows: Tensor, attention_mask: Tensor, is_packed: bool
) -> Tensor:
    """Hidden states (R, D) of chosen positions, in row-major order.

    Args:
        model: The model.
        noised_ids: int64 (B, L) model input.
        rows: bool (B, L), the R positions wanted.
        attention_mask: bool (B, L), false on padding, which is on the right.
        is_packed: Whether the documents go through the model one after the other, without padding, instead of in rows.
    """
    if not is_packed:
        return model.encode(noised_ids, attention_mask)[rows]
    positions = torch.arange(noised_ids.shape[1], device=noised_ids.device).expand_as(noised_ids)
    segments = Segments.of(attention_mask.sum(-1))
    hidden = model.encode(noised_ids[attention_mask][None], segments, positions[attention_mask][None])
    return hidden[0, rows[attention_mask]]


@torch.no_grad()
def masked_gold_logprob(
    model: MaskedDiffusionModel,
    noised_ids: Tensor,
    rows: Tensor,
    clean_ids: Tensor,
    attention_mask: Tensor | None = None,
) -> Tensor:
    """Log p(clean) of chosen positions, without gradient: (R,) float32, in row-major order.

    Args:
        model: The model.
        noised_ids: int64 (B, L) model input.
        rows: bool (B, L), the R positions wanted.
        clean_ids: int64 (B, L) true ids.
        attention_mask: bool (B, L), false on padding.
    """
    hidden = model.encode(noised_ids, attention_mask)[rows]
    return model.head(hidden, partial(chunked_gold_logprob, gold_ids=clean_ids[rows]))
