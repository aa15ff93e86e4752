"""The reverse process: semi-autoregressive denoising with remasking by confidence.

Blocks are denoised from left to right. Within a block, each step predicts every masked token and keeps the most
confident ones; the others stay masked. Greedy at temperature 0.

Source: LLaDA's public `generate` (same ids with the same arguments).
Differs: only the current block's rows reach the vocabulary matrix; left-padded prompts are honoured.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from lift_ds.models.head import MaskedDiffusionModel

Remasking = Literal["low_confidence", "random"]


@torch.no_grad()
def generate(
    model: MaskedDiffusionModel,
    prompt_ids: Tensor,
    steps: int,
    gen_length: int,
    block_length: int,
    temperature: float = 0.0,
    cfg_scale: float = 0.0,
    remasking: Remasking = "low_confidence",
    attention_mask: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Continues prompts by `gen_length` tokens.

    Args:
        model: A model from `load_pretrained`.
        prompt_ids: int64 (B, P).
        steps: Denoising steps in all; a multiple of the number of blocks.
        gen_length: Tokens to generate; a multiple of `block_length`.
        block_length: Tokens of one block.
        temperature: 0 is greedy; else Gumbel noise in float64.
        cfg_scale: Classifier-free guidance against the masked prompt; 0 turns it off.
        remasking: Keep the most probable predictions, or random ones.
        attention_mask: bool (B, P), false on left padding of shorter prompts.
        generator: Source of the randomness of `temperature` and `random`.

    Returns:
        int64 (B, P + gen_length).

    Raises:
        ValueError: The blocks do not divide `gen_length`, or the steps the blocks.
    """
    check_blocks(steps, gen_length, block_length)
    mask_id = int(model.config.mask_token_id)
    batch, prompt_length = prompt_ids.shape
    tail = torch.full((batch, gen_length), mask_id, dtype=prompt_ids.dtype, device=prompt_ids.device)
    ids = torch.cat([prompt_ids, tail], dim=1)
    predict = make_predictor(model, ids != mask_id, cfg_scale, attention_mask, gen_length)
    for start in range(prompt_length, prompt_length + gen_length, block_length):
        block = slice(start, start + block_length)
        quotas = tokens_per_step((ids[:, block] == mask_id).sum(-1), steps * block_length // gen_length)
        for quota in quotas.unbind(1):
            reveal(ids[:, block], predict(ids, block), mask_id, quota, temperature, remasking, generator)
    return ids


def check_blocks(steps: int, gen_length: int, block_length: int) -> None:
    """Checks that lengths and steps divide.

    Raises:
        ValueError: They do not; the message names both numbers.
    """
    if gen_length % block_length:
        raise ValueError(f"gen_length={gen_length} must be a multiple of block_length={block_length}.")
    if steps % (gen_length // block_length):
        raise ValueError(f"steps={steps} must be a multiple of the {gen_length // block_length} blocks.")


def make_predictor(
    model: MaskedDiffusionModel, is_prompt: Tensor, cfg_scale: float, prompt_attention: Tensor | None, gen_length: int
) -> Callable[[Tensor, slice], Tensor]:
    """Logits (B, block, V) of one block, with guidance and padding applied."""
    attention_mask, position_ids = None, None
    if prompt_attention is not None:
        answer = prompt_attention.new_ones((prompt_attention.shape[0], gen_length))
        attention_mask = torch.cat([prompt_attention, answer], dim=1).bool()
        position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)

    def logits(ids: Tensor, block: slice) -> Tensor:
        return model.head(model.encode(ids, attention_mask, position_ids)[:, block])

    def guided(ids: Tensor, block: slice) -> Tensor:
        unconditional = logits(ids.masked_fill(is_prompt, model.config.mask_token_id), block)
        return unconditional + (cfg_scale + 1) * (logits(ids, block) - unconditional)

    return guided if cfg_scale > 0 else logits


def tokens_per_step(num_masked: Tensor, steps: int) -> Tensor:
    """How many tokens each step reveals: int64 (B, steps); equal shares, the remainder on the first steps."""
    share, remainder = num_masked[:, None] // steps, num_masked[:, None] % steps
    return share + (torch.arange(steps, device=num_masked.device)[None] < remainder)


def reveal(
    block_ids: Tensor,
    logits: Tensor,
    mask_id: int,
    quota: Tensor,
    temperature: float,
    remasking: Remasking,
    generator: torch.Generator | None,
) -> None:
    """Writes the `quota` (B,) most confident predictions into the block's masked positions, in place."""
    predicted = perturb(logits, temperature, generator).argmax(-1)
    if remasking == "random":
        confidence = torch.rand(predicted.shape, dtype=torch.float64, device=predicted.device, generator=generator)
    else:
        confidence = logits.double().softmax(-1).gather(-1, predicted[..., None])[..., 0]
    masked = block_ids == mask_id
    order = confidence.masked_fill(~masked, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    rank = order.argsort(-1)
    chosen = masked & (rank < quota[:, None])
    block_ids[chosen] = predicted[chosen]


def perturb(logits: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
    """Gumbel-max noise in float64; the logits themselves at temperature 0."""
    if temperature == 0:
        return logits
    uniform = torch.rand(logits.shape, dtype=torch.float64, device=logits.device, generator=generator)
    return logits.double().exp() / (-uniform.log()) ** temperature
