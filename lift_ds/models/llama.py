"""Bidirectional models in Llama's layout: Dream, adapted Llama and Qwen models (A2D), and LLaDA under Llama's names.

They differ in biases (Qwen2, Dream), norms of queries and keys (Qwen3), and in the shift. A shifted model keeps an
autoregressive model's habit: its output at i - 1 predicts token i. `encode` hides that, see `align`.

Shapes: B sequences, L tokens, D model width, V vocabulary rows.
Source: key names, config fields and arithmetic of Dream-org/Dream-v0 and of transformers' Llama, Qwen2 and Qwen3.
Differs: attention is full; rotary tables are computed in each forward, never kept in a buffer, and heads are rotated in
float32, where the public code casts the tables to the model's type first.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from .config_fields import MaskedDiffusionConfig, refuse_values
from .elementwise import ElementwiseModule
from .layers import (
    DecoderLayer,
    DecoderLayers,
    GatedMLP,
    MaskedDiffusionModel,
    RMSNorm,
    TokenEmbedding,
    Visible,
    VocabularyHead,
    default_positions,
    project,
    rotary_frequencies,
    rotary_tables,
)

DEFAULTS = {
    "hidden_size": 4096,  # width D of the residual stream
    "intermediate_size": 11008,  # width of the gated feed-forward layer
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,  # None: num_attention_heads
    "head_dim": None,  # None: D / heads
    "vocab_size": 32000,  # rows V of the embedding and of the head
    "max_position_embeddings": 2048,  # tokens of the longest sequence that the model was made for
    "rms_norm_eps": 1e-6,
    "rope_parameters": None,  # see `read_rope`
    "partial_rotary_factor": 1.0,  # share of each head that the rotary embedding turns
    "attention_dropout": 0.0,  # probability on attention weights
    "initializer_range": 0.02,  # standard deviation of a new matrix
    "mask_token_id": None,
}
SUPPORTED = {
    "attention_bias": (False, None),
    "hidden_act": ("silu",),
    "mlp_bias": (False, None),
    "pretraining_tp": (1,),
    "use_mrope": (False, None),
    "use_sliding_window": (False, None),
}


class LlamaLayoutConfig(MaskedDiffusionConfig):
    """Configuration with the field names of Llama and Qwen; see `MaskedDiffusionConfig`.

    The rotary embedding is read from `rope_theta` and `rope_scaling`, or from transformers 5's `rope_parameters`.
    """

    defaults = DEFAULTS
    supported = SUPPORTED
    attribute_map = {"embedding_size": "vocab_size", "init_std": "initializer_range"}  # noqa: RUF012
    has_qkv_bias = False
    has_qk_norm = False

    def __init__(self, **kwargs: Any) -> None:
        layers = set(kwargs.get("layer_types") or ["full_attention"])
        refuse_values(self.model_type, {"layer_types": layers}, {"layer_types": ({"full_attention"},)})
        theta, scaling = kwargs.pop("rope_theta", 10000.0), kwargs.pop("rope_scaling", None)
        rope = read_rope(self.model_type, theta, kwargs.pop("rope_parameters", None) or scaling or {})
        super().__init__(rope_parameters=rope, **kwargs)
        self.rope_theta = rope["rope_theta"]  # where engines that serve models look for it, and guess where it is not
        self.num_key_value_heads: int = self.num_key_value_heads or self.num_attention_heads
        self.head_dim: int = self.head_dim or self.hidden_size // self.num_attention_heads


def read_rope(model_type: str, theta: float, parameters: dict[str, Any]) -> dict[str, Any]:
    """Base and scaling of the rotary frequencies, as transformers 5 names them.

    Args:
        model_type: For messages.
        theta: The base, where it stands apart, as in transformers 4.
        parameters: `rope_parameters`, or `rope_scaling` of transformers 4, whose `rope_type` was once `type`.

    Raises:
        ValueError: The scaling is neither none nor Llama 3.1's.
    """
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    refuse_values(model_type, {"rope_type": kind}, {"rope_type": ("default", "llama3")})
    return {"rope_theta": theta} | parameters | {"rope_type": kind}


def scaled_frequencies(config: PretrainedConfig, device: torch.device) -> Tensor:
    """Radians a position, float32 (half the width that turns,), with Llama 3.1's scaling where the config has it.

    Frequencies that turn fewer than `low_freq_factor` times in the original length are divided by `factor`, those that
    turn more than `high_freq_factor` times stay, and those between are interpolated.

    Source: meta-llama/llama-models, `apply_scaling`.
    """
    rope = config.rope_parameters
    width = int(config.head_dim * config.partial_rotary_factor)
    frequencies = rotary_frequencies(width, rope["rope_theta"], device)
    if rope["rope_type"] == "default":
        return frequencies
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    turns = rope["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies * (kept + (1 - kept) / rope["factor"])


def align(hidden: Tensor, position_ids: Tensor) -> Tensor:
    """Hidden states (B, L, D) of a shifted model, moved so that row i is what predicts token i.

    A document's first token has no predecessor; its row stays where it is, as in Dream's public sampler. A document
    begins where positions do not count on from the one before.
    """
    follows = position_ids[:, 1:] == position_ids[:, :-1] + 1
    moved = torch.where(follows[..., None], hidden[:, :-1], hidden[:, 1:])
    return torch.cat((hidden[:, :1], moved), dim=1)


class LlamaAttention(ElementwiseModule):
    """The matrices of attention, with Qwen2's biases or Qwen3's norms where the config has them."""

    def __init__(self, config: LlamaLayoutConfig) -> None:
        super().__init__()
        width, self.head_dim = config.hidden_size, config.head_dim
        inner, outer = config.num_attention_heads * self.head_dim, config.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(width, inner, bias=config.has_qkv_bias)
        self.k_proj = nn.Linear(width, outer, bias=config.has_qkv_bias)
        self.v_proj = nn.Linear(width, outer, bias=config.has_qkv_bias)
        self.o_proj = nn.Linear(inner, width, bias=False)
        if config.has_qk_norm:
            self.q_norm = RMSNorm(self.head_dim, config.rms_norm_eps)
            self.k_norm = RMSNorm(self.head_dim, config.rms_norm_eps)


class LlamaLayer(DecoderLayer):
    """One pre-norm layer: attention, then a gated feed-forward layer."""

    def __init__(self, config: LlamaLayoutConfig, index: int = 0) -> None:
        super().__init__()
        self.attention_dropout = config.attention_dropout
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = LlamaAttention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = self.make_mlp(config, index)

    def make_mlp(self, config: LlamaLayoutConfig, index: int) -> nn.Module:
        """The feed-forward part of the layer of this index; a family may have another."""
        return GatedMLP(config.hidden_size, config.intermediate_size)

    def before_attention(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `DecoderLayer`."""
        return project(self.self_attn, self.input_layernorm(hidden), cos, sin)

    def after_attention(self, hidden: Tensor, attended: Tensor) -> Tensor:
        """See `DecoderLayer`."""
        hidden = hidden + self.self_attn.o_proj(attended)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class LlamaStack(nn.Module):
    """Embedding, layers and final norm, under the official key names."""

    layer_class: ClassVar[type[DecoderLayer]] = LlamaLayer

    def __init__(self, config: LlamaLayoutConfig) -> None:
        super().__init__()
        self.embed_tokens = TokenEmbedding(config.vocab_size, config.hidden_size)
        self.layers = DecoderLayers([self.layer_class(config, index) for index in range(config.num_hidden_layers)])
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class LlamaLayoutLM(MaskedDiffusionModel):
    """The layers with a language-model head, unless the weights are tied; each `model_type` has its subclass."""

    config_class: type[PretrainedConfig] = LlamaLayoutConfig
    stack_class: ClassVar[type[nn.Module]] = LlamaStack
    _no_split_modules = ["LlamaLayer"]  # noqa: RUF012

    def __init__(self, config: LlamaLayoutConfig) -> None:
        super().__init__(config)
        self.model = self.stack_class(config)
        if not config.tie_word_embeddings:
            self.lm_head = VocabularyHead(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def encode(self, input_ids: Tensor, attention_mask: Visible = None, position_ids: Tensor | None = None) -> Tensor:
        """See `MaskedDiffusionModel.encode`."""
        positions = default_positions(input_ids, position_ids)
        cos, sin = rotary_tables(positions, scaled_frequencies(self.config, input_ids.device))
        hidden = self.get_input_embeddings()(input_ids)
        hidden = self.model.norm(self.model.layers.run(hidden, cos, sin, self.visible(attention_mask, positions)))
        return align(hidden, positions) if self.config.right_shift_logits else hidden
