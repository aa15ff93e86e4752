"""Greedy answers of block diffusion models: block after block, with the keys and values of finished blocks kept.

A block sees the finished ones and itself, and finished blocks never change: keeping theirs is exact. They are computed
from a block's final tokens, in the forward that begins the next block; those of a prompt's full blocks, in its first.

Prompts are answered one after the other. Where each forward is a collective, ranks agree on every one of them, and one
that is done with its prompts goes along until all are.

Shapes: B prompts, P tokens of a prompt, L tokens, b tokens of a block, H heads.

Source: SDAR's `block_diffusion_generate` and LLaDA2's `generate` (same ids), at temperature 0.
Differs: finished blocks take no forward of their own; the mask token is never predicted, where it would be revealed as
such; a step never takes a position that is revealed already, a prompt's least of all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from lift_ds.models.blocks import BlockAttention, check_block_size
from lift_ds.models.families import max_length_of
from lift_ds.models.layers import MaskedDiffusionModel, Visible
from lift_ds.models.registry import is_blockwise

from .block_rule import block_rule
from .choose import predict
from .settings import SamplingSettings, checked_settings

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
    check_arguments(model, prompt_ids, gen_length, steps_per_block, threshold, editing_threshold)
    end_id, prompt_length = int(model.config.eos_token_id), prompt_ids.numel()
    stops = torch.tensor([*(stop_ids or ([end_id] if cut_at_end else []))], dtype=torch.int64, device=prompt_ids.device)
    ids = continue_prompt(Forwards(model), prompt_ids.view(1, -1), gen_length, steps_per_block, threshold, stops)
    if cut_at_end:
        ids = ids[:, prompt_length : prompt_length + gen_length]
        ended = torch.isin(ids, stops).nonzero()
        ids = ids[:, : int(ended[0, 1]) + 1] if len(ended) else ids
    return ids.view(-1) if prompt_ids.dim() == 1 else ids


def denoise_blocks(
    model: MaskedDiffusionModel,
    prompt_ids: Tensor,
    settings: SamplingSettings,
    attention_mask: Tensor | None,
    stops: Tensor,
    any_rank: Callable[[bool], bool],
    watch: Callable[[Tensor], None] | None,
) -> tuple[Tensor, Tensor]:
    """What `reverse.denoise` gives for a model that denoises block after block; see there.

    Returns:
        The ids, int64 (B, P + gen_length), and the forwards of each row, int64 (B,).

    Raises:
        ValueError: The settings ask for something that has no meaning here.
    """
    steps, threshold = block_rule(settings, model.config)
    mask_id, end_id = int(model.config.mask_token_id), int(model.config.eos_token_id)
    start, gen_length = prompt_ids.shape[1], settings.gen_length
    ids, forwards, counts = F.pad(prompt_ids, (0, gen_length), value=mask_id), Forwards(model, any_rank), []
    for row, padded in enumerate(prompt_ids):
        prompt = padded[None] if attention_mask is None else padded[attention_mask[row]][None]
        length = prompt.shape[1]

        def show(canvas: Tensor, row: int = row, length: int = length) -> None:
            ids[row, start:] = canvas[0, length : length + gen_length]
            if watch is not None:
                watch(ids)

        before = forwards.number
        continue_prompt(forwards, prompt, gen_length, steps, threshold, stops, show)
        counts.append(forwards.number - before)
    forwards.go_along(prompt_ids[:1, -1:])
    is_filled = F.pad(torch.zeros_like(prompt_ids), (0, gen_length), value=1).bool() & (ids == mask_id)
    return ids.masked_fill(is_filled, end_id), torch.tensor(counts, device=ids.device)


class Forwards:
    """Forwards of a model, counted, and as many on every rank; all go through the same modules."""

    def __init__(self, model: MaskedDiffusionModel, any_rank: Callable[[bool], bool] = bool) -> None:
        self.model, self.any_rank, self.number = model, any_rank, 0

    def logits(self, cache: FinishedBlocks, canvas: Tensor) -> Tensor:
        """Logits (1, b, V) of the last block of a canvas (1, n b), whose other blocks are kept from now on."""
        self.any_rank(True)
        self.number += 1
        return self.model.head(cache.encode(self.model, canvas))

    def go_along(self, ids: Tensor) -> None:
        """Runs forwards of one token (1, 1) until no rank runs any."""
        while self.any_rank(False):
            self.model.head(self.model.encode(ids))


def continue_prompt(
    forwards: Forwards,
    prompt_ids: Tensor,
    gen_length: int,
    steps: int,
    threshold: float | None,
    stops: Tensor,
    show: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """The canvas (1, L) of a prompt (1, P), with mask tokens in the blocks after one with a stop token.

    Arguments are those of `generate_blocks`; `show` is called with the canvas after every step.
    """
    model, prompt_length = forwards.model, prompt_ids.shape[1]
    mask_id, size = int(model.config.mask_token_id), check_block_size(model.config)
    num_blocks = -(-(prompt_length + gen_length) // size)
    ids = F.pad(prompt_ids, (0, num_blocks * size - prompt_length), value=mask_id)
    cache = FinishedBlocks(size)
    for start in range(prompt_length // size * size, num_blocks * size, size):
        block = ids[:, start : start + size]
        for step in range(steps):
            if not (block == mask_id).any():
                break
            logits = forwards.logits(cache, ids[:, : start + size])
            reveal(model, block, logits, size // steps + (step < size % steps), threshold)
            if show is not None:
                show(ids)
        if torch.isin(block[:, max(0, prompt_length - start) :], stops).any():
            break
    return ids


def check_arguments(
    model: MaskedDiffusionModel,
    prompt_ids: Tensor,
    gen_length: int,
    steps_per_block: int,
    threshold: float | None,
    editing_threshold: float | None,
) -> None:
    """Checks the arguments of `generate_blocks`; see there."""
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


def reveal(model: MaskedDiffusionModel, block: Tensor, logits: Tensor, number: int, threshold: float | None) -> None:
    """Reveals so many masked positions of a block (1, b), or all that are surer than a threshold, in place."""
    mask_id, end_id = int(model.config.mask_token_id), int(model.config.eos_token_id)
    masked = block == mask_id
    predicted, confidence = predict(logits, GREEDY, mask_id, end_id)
    confidence = confidence.masked_fill(~masked, -1.0)
    chosen = confidence.argsort(dim=-1, descending=True, stable=True).argsort(-1) < number
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
        self.num_new = 0  # tokens of this forward that are kept
        self.among: Visible = None  # attention among these, where they are several blocks

    def encode(self, model: MaskedDiffusionModel, canvas: Tensor) -> Tensor:
        """Hidden states (1, b, D) of the last block of a canvas (1, n b), whose other blocks are kept from now on.

        Several blocks that are not kept yet are computed only where none is kept.
        """
        ids = canvas[:, self.length :]
        self.next_layer, self.num_new = 0, ids.shape[1] - self.block_size
        assert not self.length or self.num_new <= self.block_size
        positions = torch.arange(self.length, canvas.shape[1], device=ids.device)[None]
        if self.num_new > self.block_size:
            self.among = BlockAttention.finished(positions[:, : self.num_new], self.block_size)
        hidden = model.encode(ids, self, positions)
        self.among, self.length = None, self.length + self.num_new
        return hidden[:, self.num_new :]

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
        """Attention of one layer's queries (1, H, L, head_dim) to their own keys and those kept."""
        if self.length:
            kept_key, kept_value = self.layers[self.next_layer]
            key, value = torch.cat([kept_key, key], dim=2), torch.cat([kept_value, value], dim=2)
        parts = []
        if self.num_new:
            finished = key[:, :, : -self.block_size], value[:, :, : -self.block_size]
            self.layers[self.next_layer : self.next_layer + 1] = [finished]
            attend = self.among if callable(self.among) else attend_all
            parts.append(attend(query[:, :, : self.num_new], *finished, dropout))
        self.next_layer += 1
        parts.append(attend_all(query[:, :, self.num_new :], key, value, dropout))
        return torch.cat(parts, dim=2)


def attend_all(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
    """Attention in which every query sees every key."""
    is_grouped = query.shape[1] != key.shape[1]
    return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, enable_gqa=is_grouped)
