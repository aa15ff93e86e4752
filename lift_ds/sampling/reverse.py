"""The reverse process: blocks are denoised from left to right, each in steps that reveal the surest predictions.

One block as long as the answer is a process without an order of blocks, as Dream's. Models with blocks of their own
have their own process, `block_decoding`, behind the same door.

Source: LLaDA's public `generate` (same ids with the same arguments); Dream's and Fast-dLLM's rules in `choose`.
Differs: only the current block's positions reach the vocabulary matrix; left-padded prompts are honoured, so that an
answer does not depend on its batch; where confidence decides how many steps a row takes, rows that are done with their
block sit out the forwards that others still need.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lift_ds.models.head import MaskedDiffusionModel
from lift_ds.models.registry import is_blockwise

from .block_decoding import denoise_blocks
from .block_rule import longest_answered
from .choose import Randomness, choose, predict
from .predict import Predictor
from .settings import Cache, EosPolicy, Remasking, SamplingSettings, checked_settings


@dataclass(frozen=True)
class RowSeeds:
    """A seed, any text, of each row: what it draws depends on that and the block, on nothing else of its batch."""

    seeds: tuple[str, ...]

    def generators(self, block: int, device: torch.device) -> list[torch.Generator]:
        """The rows' generators of one block, by its number: rows may take different numbers of steps before it."""
        names = (f"{seed}/{block}".encode() for seed in self.seeds)
        digests = (hashlib.blake2b(name, digest_size=7).digest() for name in names)  # torch takes 32 bits on the CPU
        return [torch.Generator(device).manual_seed(int.from_bytes(digest, "big")) for digest in digests]


@dataclass(frozen=True)
class Generation:
    """What came of prompts: ids, int64 (B, P + gen_length), prompts included.

    Forwards of the model are of however many rows, two each with guidance; `row_forwards`, int64 (B,), are those that a
    row took part in because it still had masks.
    """

    ids: Tensor
    num_forwards: int
    row_forwards: Tensor


def generate(
    model: MaskedDiffusionModel,
    prompt_ids: Tensor,
    steps: int | None,
    gen_length: int,
    block_length: int,
    temperature: float = 0.0,
    cfg_scale: float = 0.0,
    remasking: Remasking = "low_confidence",
    attention_mask: Tensor | None = None,
    generator: torch.Generator | None = None,
    *,
    top_p: float = 1.0,
    threshold: float | None = None,
    factor: float | None = None,
    eos: EosPolicy = "allow",
    stop_early: bool = False,
    cache: Cache = "none",
) -> Tensor:
    """Continues prompts by `gen_length` tokens.

    Args:
        model: A model from `load_pretrained`.
        prompt_ids: int64 (B, P).
        steps: Denoising steps in all; a multiple of the number of blocks. `None` with `threshold` or `factor`.
        gen_length: Tokens to generate; a multiple of `block_length`.
        block_length: Tokens of one block.
        temperature: 0 is greedy; else Gumbel noise in float64.
        cfg_scale: Classifier-free guidance against the masked prompt; 0 turns it off.
        remasking: What ranks the predictions; see `sampling.settings`.
        attention_mask: bool (B, P), false on left padding of shorter prompts.
        generator: Source of the randomness of `temperature` and `random`.
        top_p: Draw from the fewest tokens that have this probability together.
        threshold: Reveal all predictions that are at least so sure.
        factor: Reveal as many as the product of number and doubt allows.
        eos: Whether the end token may be predicted, or is revealed last.
        stop_early: End a row with the block in which its first end token stands; end tokens fill the rest.
        cache: Which keys and values later steps of a block take from its first: `none`, those of the `prefix`, or of
            all but the block (`dual`). Faster, and an approximation; see `sampling.predict`.

    Returns:
        int64 (B, P + gen_length).

    Raises:
        ValueError: The blocks do not divide `gen_length`, or the steps the blocks; or a value is out of range.
    """
    settings = checked_settings(
        gen_length=gen_length, block_length=block_length, steps=steps, temperature=temperature, top_p=top_p,
        remasking=remasking, threshold=threshold, factor=factor, eos=eos, stop_early=stop_early, cfg_scale=cfg_scale,
        cache=cache,
    )  # fmt: skip
    return denoise(model, prompt_ids, settings, attention_mask, generator).ids


def check_length(settings: SamplingSettings, prompt_length: int, config: Any) -> None:
    """Whether a prompt and its answer fit into a model.

    Raises:
        ValueError: They are longer than the model allows.
    """
    longest = longest_answered(config)
    if prompt_length + settings.gen_length > longest:
        raise ValueError(
            f"a prompt of {prompt_length} tokens and gen_length={settings.gen_length} are longer than the {longest} "
            "tokens that the model was made for; shorten one of them."
        )


@torch.no_grad()
def denoise(
    model: MaskedDiffusionModel,
    prompt_ids: Tensor,
    settings: SamplingSettings,
    attention_mask: Tensor | None = None,
    generator: torch.Generator | RowSeeds | None = None,
    any_rank: Callable[[bool], bool] = bool,
    watch: Callable[[Tensor], None] | None = None,
    stop_ids: Sequence[int] = (),
) -> Generation:
    """Continues prompts.

    Args:
        model: In eval mode.
        prompt_ids: int64 (B, P).
        settings: How.
        attention_mask: bool (B, P), false on left padding.
        generator: Source of randomness, of each row or of the batch: then what a row draws depends on the others.
        any_rank: Whether something is so on any rank: loops end by agreement where each forward is a collective. A rank
            that is done goes along with one row.
        watch: Called with the ids after every step.
        stop_ids: Tokens that end an answer early, as the config's end token does.

    Raises:
        ValueError: Prompt and answer together are longer than the model allows, or it has blocks of its own, for which
            a setting means nothing.
    """
    mask_id, end_id = int(model.config.mask_token_id), int(model.config.eos_token_id)
    prompt_length = prompt_ids.shape[1]
    check_length(settings, prompt_length, model.config)
    stops = torch.tensor(
        [end_id, *stop_ids] if settings.stop_early else [], dtype=torch.int64, device=prompt_ids.device
    )
    if is_blockwise(model.config):
        ids, counts = denoise_blocks(model, prompt_ids, settings, attention_mask, stops, any_rank, watch)
        return Generation(ids, int(counts.sum()), counts)
    ids = F.pad(prompt_ids, (0, settings.gen_length), value=mask_id)
    logits_of = Predictor(model, prompt_ids, attention_mask, settings)
    num_forwards, row_forwards = 0, torch.zeros(len(ids), dtype=torch.int64, device=ids.device)
    for number in range(settings.num_blocks):
        start = prompt_length + number * settings.block_length
        block = slice(start, start + settings.block_length)
        source = generator.generators(number, ids.device) if isinstance(generator, RowSeeds) else generator
        rows, step = torch.arange(len(ids), device=ids.device), 0
        while any_rank(bool((ids[:, block] == mask_id).any())):
            is_open = (ids[rows, block] == mask_id).any(-1)
            rows = rows[is_open] if is_open.any() else rows[:1]
            masked = ids[rows, block] == mask_id
            logits = logits_of(ids, block, rows, is_first=step == 0)
            draws: Randomness = [source[row] for row in rows.tolist()] if isinstance(source, list) else source
            predicted, confidence = predict(logits, settings, mask_id, end_id, draws)
            chosen = choose(confidence, masked, settings, step)
            ids[rows, block] = torch.where(chosen, predicted, ids[rows, block])
            step += 1
            num_forwards += logits_of.forwards_per_step
            row_forwards[rows] += masked.any(-1) * logits_of.forwards_per_step
            if watch is not None:
                watch(ids)
        if settings.stop_early:
            ended = torch.isin(ids[:, prompt_length : block.stop], stops).any(-1)
            ids[:, block.stop :] = torch.where(ended[:, None], end_id, ids[:, block.stop :])
    return Generation(ids, num_forwards, row_forwards)


def pad(rows: Sequence[Sequence[int]], pad_id: int, side: Literal["left", "right"] = "left") -> tuple[Tensor, Tensor]:
    """Rows of token ids as int64 (B, L), and what to attend to as bool (B, L), false on padding."""
    ids = [torch.tensor(row, dtype=torch.int64) for row in rows]
    real = [torch.ones(len(row), dtype=torch.bool) for row in rows]
    return pad_sequence(ids, True, pad_id, side), pad_sequence(real, True, False, side)
