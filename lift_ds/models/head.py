"""The masked-token head: only rows that are needed reach the vocabulary matrix."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from lift_ds.diffusion.loss import gold_logprob


class MaskedDiffusionModel(Protocol):
    """What the trainer asks of a model; every family of `models.families` provides it."""

    config: Any

    def encode(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, position_ids: Tensor | None = None
    ) -> Tensor:
        """(B, L, D) hidden states; row i holds what `head` needs to predict token i."""

    def head(self, hidden: Tensor) -> Tensor:
        """(..., V) logits of (..., D) hidden states."""


def masked_gold_logprob(
    model: MaskedDiffusionModel,
    noised_ids: Tensor,
    rows: Tensor,
    clean_ids: Tensor,
    attention_mask: Tensor | None = None,
) -> Tensor:
    """Log p(clean) of chosen positions, given the noised input.

    Args:
        model: The model.
        noised_ids: (B, L) model input.
        rows: bool (B, L), the positions wanted; R of them.
        clean_ids: (B, L) true ids.
        attention_mask: bool (B, L), false on padding.

    Returns:
        (R,) float32, in row-major order; with R = 0 an empty tensor that is still attached to the graph.
    """
    hidden = model.encode(noised_ids, attention_mask)
    return gold_logprob(model.head(hidden[rows]), clean_ids[rows])
