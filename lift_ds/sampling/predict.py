"""Logits of the block that is being denoised, with guidance, left padding, and keys and values kept between steps.

Within a block only a few tokens change from step to step. With a cache, the first step of a block is a forward over
everything, which keeps the keys and values of every layer; later steps compute the block alone (`dual`), or the block
and what follows it (`prefix`), and attend to what was kept of the rest: an approximation, as in Fast-dLLM.

Shapes: B sequences, R of them in a forward, L tokens, N positions of the block, V vocabulary rows.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from lift_ds.models.head import MaskedDiffusionModel

from .settings import SamplingSettings


class Predictor:
    """What a sampler asks of a model in eval mode.

    Prompts are int64 (B, P), their attention mask bool (B, P), false on left padding; `None` where there is none.
    """

    def __init__(
        self,
        model: MaskedDiffusionModel,
        prompt_ids: Tensor,
        prompt_attention: Tensor | None,
        settings: SamplingSettings,
    ) -> None:
        self.model, self.settings, self.prompt_length = model, settings, prompt_ids.shape[1]
        self.is_prompt = prompt_ids != model.config.mask_token_id
        self.attention_mask: Tensor | None = None
        self.position_ids = torch.arange(self.prompt_length + settings.gen_length, device=prompt_ids.device)[None]
        if prompt_attention is not None:
            self.attention_mask = F.pad(prompt_attention.bool(), (0, settings.gen_length), value=True)
            self.position_ids = (self.attention_mask.long().cumsum(-1) - 1).clamp(min=0)
        self.position_ids = self.position_ids.expand(len(prompt_ids), -1)
        self.kept: KeyValueCache | None = None
        self.forwards_per_step = 2 if settings.cfg_scale > 0 else 1

    def __call__(self, ids: Tensor, block: slice, rows: Tensor, is_first: bool) -> Tensor:
        """Logits (R, N, V) of a block.

        Args:
            ids: int64 (B, L).
            block: Positions of the block.
            rows: int64 (R,), ascending, the sequences that are asked for; within a block only ever fewer.
            is_first: Whether the block was not asked for before.
        """
        if self.settings.cfg_scale > 0:
            blind = ids.clone()
            blind[:, : self.prompt_length][self.is_prompt] = self.model.config.mask_token_id
            unguided = self.full(blind, block, rows)
            return unguided + (self.settings.cfg_scale + 1) * (self.full(ids, block, rows) - unguided)
        if self.settings.cache == "none":
            return self.full(ids, block, rows)
        if self.kept is None or is_first:
            self.kept = KeyValueCache(rows, None if self.attention_mask is None else self.attention_mask[rows])
            return self.full(ids, block, rows, self.kept)
        return self.partial(ids, block, rows, self.kept)

    def full(self, ids: Tensor, block: slice, rows: Tensor, keeps: KeyValueCache | None = None) -> Tensor:
        """A forward over all positions; with a cache, one that fills it."""
        visible = None if self.attention_mask is None else self.attention_mask[rows]
        return self.model.head(self.model.encode(ids[rows], keeps or visible, self.position_ids[rows])[:, block])

    def partial(self, ids: Tensor, block: slice, rows: Tensor, kept: KeyValueCache) -> Tensor:
        """A forward over the block alone, or all that follows too."""
        is_shifted = self.model.config.right_shift_logits  # a shifted position needs the one before
        start = max(0, block.start - 1) if is_shifted else block.start
        positions = slice(start, block.stop if self.settings.cache == "dual" else ids.shape[1])
        kept.replace(positions, rows)
        hidden = self.model.encode(ids[rows, positions], kept, self.position_ids[rows, positions])
        return self.model.head(hidden[:, block.start - start : block.stop - start])


class KeyValueCache:
    """Keys and values of every layer, and attention with them: what `encode` takes in place of a mask.

    The first forward, of the sequences `rows` (R,), ascending, keeps them; later ones bring those of some positions
    anew. The mask is bool (R, L), false on padding.
    """

    def __init__(self, rows: Tensor, attention_mask: Tensor | None) -> None:
        self.rows = rows
        self.visible = None if attention_mask is None else attention_mask[:, None, None, :]
        self.layers: list[tuple[Tensor, Tensor]] = []
        self.positions: slice | None = None
        self.next_layer = 0

    def replace(self, positions: slice, rows: Tensor) -> None:
        """Makes the next forward one of these positions only; other sequences than these are let go."""
        self.positions, self.next_layer = positions, 0
        if len(rows) < len(self.rows):
            stays = torch.isin(self.rows, rows)
            self.rows, self.visible = rows, None if self.visible is None else self.visible[stays]
            self.layers = [(key[stays], value[stays]) for key, value in self.layers]

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
        """Attention of one layer's queries (R, H, positions, head_dim) to the keys of all positions."""
        if self.positions is None:
            self.layers.append((key, value))
        else:
            kept_key, kept_value = self.layers[self.next_layer]
            self.next_layer += 1
            kept_key[:, :, self.positions], kept_value[:, :, self.positions] = key, value
            key, value = kept_key, kept_value
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=self.visible, dropout_p=dropout, enable_gqa=query.shape[1] != key.shape[1]
        )
