"""SDAR: Qwen3's layers, which denoise block after block; the output at i predicts token i.

Source: key names, config fields and arithmetic of JetAstra/SDAR.
Differs: in bf16 the public norm multiplies with its weight in float32 and casts once (flash-attn's kernel); here, as in
Qwen3, the cast comes before the weight.
"""

from __future__ import annotations

from typing import Any

from .blocks import BlockDiffusion
from .family import ControlIds, Family
from .llama import LlamaLayer, LlamaLayoutConfig, LlamaLayoutLM


class SDARConfig(LlamaLayoutConfig):
    """Configuration of SDAR; the published ones name no `block_size`, by which the models differ."""

    model_type = "sdar"
    defaults = LlamaLayoutConfig.defaults | {"block_size": None}
    supported = LlamaLayoutConfig.supported | {"sliding_window": (None,)}
    has_qk_norm = True
    right_shift_logits = False

    def __init__(self, **kwargs: Any) -> None:
        kwargs.pop("attn_implementation", None)  # of the public code; transformers would look for it here
        super().__init__(**kwargs)


class SDARForCausalLM(BlockDiffusion, LlamaLayoutLM):
    """SDAR with its language-model head."""

    config_class = SDARConfig


FAMILY = Family(
    name="sdar",
    config_class=SDARConfig,
    model_class=SDARForCausalLM,
    layer_class=LlamaLayer,
    published_ids={151936: ControlIds(mask_token_id=151669, eos_token_id=151643, pad_token_id=151643)},
    mask_tokens=("<|MASK|>", "<MASK>"),
    turn_ends=("<|im_end|>",),
    end_is_padding=True,
    is_blockwise=True,
    adapted_from="qwen3",
)
