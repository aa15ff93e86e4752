"""What training asks of a model: hidden states of chosen rows, of which alone the vocabulary matrix is needed."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from lift_ds.method.loss import chunked_gold_logprob
from lift_ds.method.positions import positions, taken

from .attention import Kernel, Segments
from .blocks import BlockAttention, check_block_size
from .layers import MaskedDiffusionModel, default_positions
from .registry import is_blockwise


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


def encode_rows(
    model: MaskedDiffusionModel,
    noised_ids: Tensor,
    clean_ids: Tensor,
    at: Tensor,
    attention_mask: Tensor | None,
    lengths: list[int] | None,
    kernel: Kernel = "sdpa",
) -> Tensor:
    """Hidden states (R, D) of chosen positions.

    Args:
        model: The model.
        noised_ids: int64 (B, L) model input.
        clean_ids: int64 (B, L) true ids, which block diffusion models see of the blocks before.
        at: int64 (R,), the positions wanted; see `positions`.
        attention_mask: bool (B, L), false on padding, which is on the right; `None` where there is none.
        lengths: Tokens of each document, where they go through the model one after the other, without padding, instead
            of in rows.
        kernel: What computes their attention then; blocks have their own.
    """
    has_blocks = is_blockwise(model.config)
    if lengths is None and has_blocks:
        return taken(encode_blocks(model, noised_ids, clean_ids, None, attention_mask), at)
    if lengths is None:
        return taken(model.encode(noised_ids, attention_mask), at)
    width, segments = noised_ids.shape[1], Segments.of(lengths, noised_ids.device, kernel)
    real = torch.ones_like(noised_ids, dtype=torch.bool) if attention_mask is None else attention_mask
    tokens = positions(real, sum(lengths))
    ids, position_ids = taken(noised_ids, tokens)[None], (tokens % width)[None]
    if has_blocks:
        hidden = encode_blocks(model, ids, taken(clean_ids, tokens)[None], position_ids)
    else:
        hidden = model.encode(ids, segments, position_ids)
    return hidden[0].index_select(0, segments.bounds[at // width] + at % width)


def encode_blocks(
    model: MaskedDiffusionModel,
    noised_ids: Tensor,
    clean_ids: Tensor,
    position_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> Tensor:
    """Hidden states (B, L, D) of the noised half of [noised ; clean]; see `blocks`.

    Args:
        model: A block diffusion model.
        noised_ids: int64 (B, L).
        clean_ids: int64 (B, L).
        position_ids: int64 (B, L); a document begins where they do not count on. 0 to L-1 where not given.
        attention_mask: bool (B, L), false on padding; `None` where there is none.
    """
    length = clean_ids.shape[1]
    position_ids = default_positions(clean_ids, position_ids)
    visible = BlockAttention.training(position_ids, check_block_size(model.config), attention_mask)
    ids = torch.cat([noised_ids, clean_ids], dim=1)
    return model.encode(ids, visible, position_ids.repeat(1, 2))[:, :length]


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
    if is_blockwise(model.config):
        hidden = encode_blocks(model, noised_ids, clean_ids, None, attention_mask)[rows]
    else:
        hidden = model.encode(noised_ids, attention_mask)[rows]
    return model.head(hidden, partial(chunked_gold_logprob, gold_ids=clean_ids[rows]))
