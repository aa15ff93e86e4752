"""The masked-token head: only rows that are needed reach the vocabulary matrix."""

from __future__ import annotations

from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from lift_ds.method.loss import chunked_gold_logprob

from .layers import HeadFunction, Visible
from .segments import Segments


class MaskedDiffusionModel(Protocol):
    """What the trainer asks of a model; the class of every family provides it."""

    config: Any

    @property
    def device(self) -> torch.device:
        """Where it computes."""

    @property
    def dtype(self) -> torch.dtype:
        """Type of its weights."""

    def get_input_embeddings(self) -> Any:
        """The embedding module."""

    def encode(self, input_ids: Tensor, attention_mask: Visible = None, position_ids: Tensor | None = None) -> Tensor:
        """(B, L, D) hidden states; row i holds what `head` needs to predict token i."""

    def head(self, hidden: Tensor, through: HeadFunction = F.linear) -> Any:
        """(..., V) logits of (..., D) hidden states, or `through(hidden, matrix)` instead."""


def encode_rows(
    model: MaskedDiffusionModel, noised_ids: Tensor, rows: Tensor, attention_mask: Tensor, is_packed: bool
) -> Tensor:
    """Hidden states of chosen positions.

    Args:
        model: The model.
        noised_ids: int64 (B, L) model input.
        rows: bool (B, L), the positions wanted; R of them.
        attention_mask: bool (B, L), false on padding, which is on the right.
        is_packed: Whether the documents go through the model one after the other, without padding, instead of in rows.

    Returns:
        (R, D), in row-major order.
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
    """Log p(clean) of chosen positions, given the noised input; without gradient.

    Args:
        model: The model.
        noised_ids: (B, L) model input.
        rows: bool (B, L), the positions wanted; R of them.
        clean_ids: (B, L) true ids.
        attention_mask: bool (B, L), false on padding.

    Returns:
        (R,) float32, in row-major order.
    """
    hidden = model.encode(noised_ids, attention_mask)[rows]
    return model.head(hidden, partial(chunked_gold_logprob, gold_ids=clean_ids[rows]))
