"""Fine-tuning of masked diffusion language models with LIFT under DeepSpeed ZeRO-3.

The stable API:

    model, tokenizer = lift_ds.load_pretrained("builtin:base")
    loss = lift_ds.lift_loss(model, clean_ids, response_mask)
    kept = lift_ds.select_kept(gold_logprob, superset, t, rho, "hard")
    loss = lift_ds.sft_loss(model, clean_ids, kept, t, num_targets=response_mask.sum())
    ids = lift_ds.generate(model, prompt_ids, steps=48, gen_length=48, block_length=48)

and of models that denoise block after block:

    loss = lift_ds.block_sft_loss(model, clean_ids, masked, weights, num_targets=masked.sum())
    ids = lift_ds.generate_blocks(model, prompt_ids, gen_length=256, steps_per_block=4)

Its modules are imported when a name is asked for: what needs no model, such as scoring, starts without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lift_ds.method.selection import select_kept
    from lift_ds.method.weights import cart_weights
    from lift_ds.models.weights import load_pretrained
    from lift_ds.sampling.block_decoding import generate_blocks
    from lift_ds.sampling.reverse import generate
    from lift_ds.training.block_loss import block_sft_loss
    from lift_ds.training.functional import gift_loss, lift_loss, sft_loss

HOMES = {
    "block_sft_loss": "lift_ds.training.block_loss",
    "cart_weights": "lift_ds.method.weights",
    "generate": "lift_ds.sampling.reverse",
    "generate_blocks": "lift_ds.sampling.block_decoding",
    "gift_loss": "lift_ds.training.functional",
    "lift_loss": "lift_ds.training.functional",
    "load_pretrained": "lift_ds.models.weights",
    "select_kept": "lift_ds.method.selection",
    "sft_loss": "lift_ds.training.functional",
}

__all__ = [
    "block_sft_loss",
    "cart_weights",
    "generate",
    "generate_blocks",
    "gift_loss",
    "lift_loss",
    "load_pretrained",
    "select_kept",
    "sft_loss",
]


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module 'lift_ds' has no attribute {name!r}")
    return getattr(importlib.import_module(HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
