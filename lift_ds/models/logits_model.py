"""Any model that returns logits, as the training step asks for one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn


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
