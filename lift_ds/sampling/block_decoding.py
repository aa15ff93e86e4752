"""Greedy answers of block diffusion models: block after block, with the keys and values of finished blocks kept.

A block sees the finished ones and itself, so it needs no mask, and finished blocks never change: keeping theirs is
exact. They are computed from a block's final tokens, in one more forward; those of a prompt's full blocks, in one.

Shapes: L tokens, b tokens of a block, H heads.

Source: SDAR's `block_diffusion_generate` and LLaDA2's `generate` (same ids), at temperature 0.
Differs: the mask token is never predicted, where it would be revealed as such; a step never takes a position that is
revealed already, a prompt's least of all.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from lift_ds.models.blocks import BlockAttention, check_block_size
from lift_ds.models.families import max_length_of
from lift_ds.models.layers import MaskedDiffusionModel, Visible
from lift_ds.models.registry import is_blockwise

from .choose import predict
from .settings import checked_settings

GREEDY = checked_settings(gen_length=1, block_length=1, steps=1)


@torch.no_grad()
def generate_blocks(
    model: MaskedDiffusionModel,
    prompt_ids: Tensor,
    gen_length: int,
    steps_per_block: int,
    threshold: float | None = None,
    stop_ids: Sequence[int] = (),
    cut_at_end: bool = False,
    *,
    editing_threshold: float | None = None,
) -> Tensor:
    """Continues a prompt by whole blocks, greedily, until a block holds a stop token.

    Step s of a block reveals its b // steps surest predictions, one more in the first b % steps of them; where a
    threshold is given and more than that are surer than it, all of these.

    Args:
        model: A block diffusion model from `load_pretrained`.
        prompt_ids: int64 (L,) or (1, L), at least one token.
        gen_length: Tokens to generate; up to b - 1 more fill the last block.
        steps_per_block: Denoising steps of a block at most, 1 to b.
        threshold: Reveal all predictions whose probability is above it; none is above 1.
        stop_ids: Tokens with which an answer ends, once their block is done.
        cut_at_end: Return what was generated alone, at most `gen_length` tokens, up to and with the first stop token;
            the config's end token where there are no stop tokens.
        editing_threshold: Refused: LLaDA2.1's editing of revealed tokens is not implemented.

    Returns:
        int64, of as many dimensions as the prompt: the whole canvas, prompt included, with mask tokens in the blocks
        that were not begun; or the part that `cut_at_end` says.

    Raises:
        ValueError: The model does not denoise block after block, or a value is out of range.
    """
    size = check_arguments(model, prompt_ids, gen_length, steps_per_block, threshold, editing_threshold)
    mask_id, end_id, prompt_length = int(model.config.mask_token_id), int(model.config.eos_token_id), prompt_ids.numel()
    num_blocks = -(-(prompt_length + gen_length) // size)
    ids = F.pad(prompt_ids.view(1, -1), (0, num_blocks * size - prompt_length), value=mask_id)
    stops = torch.tensor([*(stop_ids or ([end_id] if cut_at_end else []))], dtype=torch.int64, device=ids.device)
    cache = FinishedBlocks(size)
    first = prompt_length // size
    if first:
        cache.finish(model, ids[:, : first * size])
    for start in range(first * size, num_blocks * size, size):
        block = ids[:, start : start + size]
        denoise_block(model, block, cache, steps_per_block, threshold)
        if torch.isin(block[:, max(0, prompt_length - start) :], stops).any():
            break
        if start + size < num_blocks * size:
            cache.finish(model, block)
    if cut_at_end:
        ids = ids[:, prompt_length : prompt_length + gen_length]
        ended = torch.isin(ids, stops).nonzero()
        ids = ids[:, : int(ended[0, 1]) + 1] if len(ended) else ids
    return ids.view(-1) if prompt_ids.dim() == 1 else ids


def check_arguments(
    model: MaskedDiffusionModel,
    prompt_ids: Tensor,
    gen_length: int,
    steps_per_block: int,
    threshold: float | None,
    editing_threshold: float | None,
) -> int:
    """The model's block size; arguments as in `generate_blocks`.

    Raises:
        ValueError: As there.
    """
    if not is_blockwise(model.config):
        raise ValueError(f"{type(model).__name__} has no blocks of its own; use lift_ds.generate(...).")
    size, longest = check_block_size(model.config), max_length_of(model.config)
    if editing_threshold is not None:
        raise ValueError(
            f"editing_threshold={editing_threshold}: LLaDA2.1's editing of revealed tokens is not implemented; without "
            "it the model answers by its other mode."
        )
    if prompt_ids.dim() not in (1, 2) or prompt_ids.numel() != prompt_ids.shape[-1] or not prompt_ids.numel():
        raise ValueError(
            f"prompt_ids has the shape {tuple(prompt_ids.shape)}; one prompt, (L,) or (1, L), is expected."
        )
    if gen_length < 1:
        raise ValueError(f"gen_length={gen_length}: at least 1 is needed.")
    if not 1 <= steps_per_block <= size:
        raise ValueError(f"steps_per_block={steps_per_block}: 1 to {size}, the block size, are allowed.")
    if threshold is not None and not threshold > 0:
        raise ValueError(f"threshold={threshold}: a probability above 0 is expected; 1 and more is never reached.")
    if -(-(prompt_ids.numel() + gen_length) // size) * size > longest:
        raise ValueError(
            f"a prompt of {prompt_ids.numel()} tokens and gen_length={gen_length}, filled up to blocks of {size}, are "
            f"longer than the {longest} tokens that the model was made for; shorten one of them."
        )
    return size


def denoise_block(
    model: MaskedDiffusionModel, block: Tensor, cache: FinishedBlocks, steps: int, threshold: float | None
) -> None:
    """Reveals the masked positions of a block (1, b), in place."""
    mask_id, end_id = int(model.config.mask_token_id), int(model.config.eos_token_id)
    size = block.shape[1]
    for step in range(steps):
        masked = block == mask_id
        if not masked.any():
            return
        logits = model.head(cache.encode(model, block))
        predicted, confidence = predict(logits, GREEDY, mask_id, end_id)
        confidence = confidence.masked_fill(~masked, -1.0)
        rank = confidence.argsort(dim=-1, descending=True, stable=True).argsort(-1)
        chosen = rank < size // steps + (step < size % steps)
        if threshold is not None:
            is_sure = confidence > threshold
            chosen = torch.where(is_sure.sum() >= chosen.sum(), is_sure, chosen)
        block.copy_(torch.where(chosen & masked, predicted, block))


class FinishedBlocks:
    """Keys and values of every layer for the finished blocks, and attention with them, in place of a mask."""

    def __init__(self, block_size: int) -> None:
        self.block_size, self.length = block_size, 0
        self.layers: list[tuple[Tensor, Tensor]] = []
        self.next_layer = 0
        self.keeps = False
        self.among: Visible = None

    def encode(self, model: MaskedDiffusionModel, ids: Tensor) -> Tensor:
        """Hidden states (1, L, D) of tokens (1, L) that follow the finished ones."""
        self.next_layer = 0
        positions = torch.arange(self.length, self.length + ids.shape[1], device=ids.device)[None]
        return model.encode(ids, self, positions)

    def finish(self, model: MaskedDiffusionModel, ids: Tensor) -> None:
        """Keeps the keys and values of blocks (1, n b), all of them final; several only where none is kept yet."""
        assert not self.length or ids.shape[1] == self.block_size
        if ids.shape[1] > self.block_size:
            positions = torch.arange(ids.shape[1], device=ids.device)[None]
            self.among = BlockAttention.finished(positions, self.block_size)
        self.keeps = True
        self.encode(model, ids)
        self.keeps, self.among, self.length = False, None, self.length + ids.shape[1]

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
        """Attention of one layer's queries (1, H, L, head_dim) to their own keys and those kept."""
        if self.length:
            kept_key, kept_value = self.layers[self.next_layer]
            key, value = torch.cat([kept_key, key], dim=2), torch.cat([kept_value, value], dim=2)
        if self.keeps:
            self.layers[self.next_layer : self.next_layer + 1] = [(key, value)]
        self.next_layer += 1
        if callable(self.among):
            return self.among(query, key, value, dropout)
        return F.scaled_dot_product_attention(
            query, key, value, dropout_p=dropout, enable_gqa=query.shape[1] != key.shape[1]
        )
