"""Logits of the block that is being denoised, with guidance, left padding, and keys and values kept between steps.

Within a block only a few tokens change from step to step. With a cache, the first step of a block is a forward over
everything, which keeps the keys and values of every layer; later steps compute the block alone (`dual`), or the block
and what follows it (`prefix`), and attend to what was kept of the rest: an approximation, as in Fast-dLLM.

Shapes: B sequences, L tokens, N positions of the block, V vocabulary rows.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from lift_ds.models.head import MaskedDiffusionModel

Cache = Literal["none", "prefix", "dual"]


class Predictor:
    """What a sampler asks of a model.

    Args:
        model: In eval mode.
        prompt_ids: int64 (B, P).
        prompt_attention: bool (B, P), false on left padding; `None` where there is none.
        gen_length: Tokens of the answer.
        cfg_scale: Classifier-free guidance against the masked prompt; 0 turns it off.
        cache: Which keys and values later steps of a block take from its first.
    """

    def __init__(
        self,
        model: MaskedDiffusionModel,
        prompt_ids: Tensor,
        prompt_attention: Tensor | None,
        gen_length: int,
        cfg_scale: float,
        cache: Cache,
    ) -> None:
        """Derives positions and visible keys."""
        prompt_length = prompt_ids.shape[1]
        self.model, self.prompt_length, self.cfg_scale, self.cache = model, prompt_length, cfg_scale, cache
        self.is_prompt = prompt_ids != model.config.mask_token_id
        self.attention_mask: Tensor | None = None
        self.position_ids = torch.arange(prompt_length + gen_length, device=prompt_ids.device)[None]
        if prompt_attention is not None:
            self.attention_mask = F.pad(prompt_attention.bool(), (0, gen_length), value=True)
            self.position_ids = (self.attention_mask.long().cumsum(-1) - 1).clamp(min=0)
        self.kept: KeyValueCache | None = None

    @property
    def forwards_per_step(self) -> int:
        """Forwards behind one call."""
        return 2 if self.cfg_scale > 0 else 1

    def __call__(self, ids: Tensor, block: slice, is_first: bool) -> Tensor:
        """Logits (B, N, V) of a block of `ids` (B, L); `is_first` where the block was not asked for before."""
        if self.cfg_scale > 0:
            blind = ids.clone()
            blind[:, : self.prompt_length][self.is_prompt] = self.model.config.mask_token_id
            unguided = self.full(blind, block)
            return unguided + (self.cfg_scale + 1) * (self.full(ids, block) - unguided)
        if self.cache == "none":
            return self.full(ids, block)
        if is_first or self.kept is None:
            self.kept = KeyValueCache(self.attention_mask)
            hidden = self.model.encode(ids, self.kept, self.position_ids)
            return self.model.head(hidden[:, block])
        return self.partial(ids, block, self.kept)

    def full(self, ids: Tensor, block: slice) -> Tensor:
        """A forward over everything."""
        return self.model.head(self.model.encode(ids, self.attention_mask, self.position_ids)[:, block])

    def partial(self, ids: Tensor, block: slice, kept: KeyValueCache) -> Tensor:
        """A forward over the block alone, or all that follows too."""
        is_shifted = self.model.config.right_shift_logits  # a shifted row needs the one before
        start = max(0, block.start - 1) if is_shifted else block.start
        rows = slice(start, block.stop if self.cache == "dual" else ids.shape[1])
        kept.replace(rows)
        hidden = self.model.encode(ids[:, rows], kept, self.position_ids[:, rows])
        return self.model.head(hidden[:, block.start - start : block.stop - start])


class KeyValueCache:
    """Keys and values of every layer, and attention with them: what `encode` takes in place of a mask.

    The first forward keeps them; later ones bring those of some rows anew.

    Args:
        attention_mask: bool (B, L), false on padding.
    """

    def __init__(self, attention_mask: Tensor | None) -> None:
        """Starts empty."""
        self.visible = None if attention_mask is None else attention_mask[:, None, None, :]
        self.layers: list[tuple[Tensor, Tensor]] = []
        self.rows: slice | None = None
        self.next_layer = 0

    def replace(self, rows: slice) -> None:
        """Makes the next forward one of these rows only."""
        self.rows, self.next_layer = rows, 0

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
        """Attention of one layer's queries (B, H, rows, head_dim) to the keys of all rows."""
        if self.rows is None:
            self.layers.append((key, value))
        else:
            kept_key, kept_value = self.layers[self.next_layer]
            self.next_layer += 1
            kept_key[:, :, self.rows], kept_value[:, :, self.rows] = key, value
            key, value = kept_key, kept_value
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=self.visible, dropout_p=dropout, enable_gqa=query.shape[1] != key.shape[1]
        )
