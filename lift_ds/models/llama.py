"""Bidirectional models in Llama's layout: Dream, adapted Llama and Qwen models (A2D), and LLaDA under Llama's names.

They differ in biases (Qwen2, Dream), norms of queries and keys (Qwen3), and in the shift. A shifted model keeps an
autoregressive model's habit: its output at i - 1 predicts token i. `encode` hides that, see `align`.

Shapes: B sequences, L tokens, D model width, V vocabulary rows.
Source: key names, config fields and arithmetic of Dream-org/Dream-v0 and of transformers' Llama, Qwen2 and Qwen3.
Differs: attention is full; rotary tables are computed in each forward, never kept in a buffer.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from transformers import PretrainedConfig

from .layers import (
    DecoderLayers,
    HeadFunction,
    MaskedDiffusionLM,
    RMSNorm,
    TokenEmbedding,
    Visible,
    VocabularyHead,
    as_visible,
    attend,
    default_positions,
    refuse_values,
    rotary_frequencies,
    rotary_tables,
    rotate,
    split_heads,
)

SUPPORTED_VALUES = {
    "attention_bias": (False, None),
    "hidden_act": ("silu",),
    "mlp_bias": (False, None),
    "pretraining_tp": (1,),
    "use_mrope": (False, None),
    "use_sliding_window": (False, None),
}


class LlamaLayoutConfig(PretrainedConfig):
    """Configuration with the field names of Llama and Qwen; values that are not computed here are refused.

    Args:
        hidden_size: Width D of the residual stream.
        intermediate_size: Width of the gated feed-forward layer.
        num_hidden_layers: Number of layers.
        num_attention_heads: Number of attention heads.
        num_key_value_heads: Number of key and value heads; `None` means `num_attention_heads`.
        head_dim: Width of one head; `None` means D / heads.
        vocab_size: Rows V of the embedding and of the head.
        max_position_embeddings: Longest sequence that the model was made for, in tokens.
        rms_norm_eps: Epsilon of the RMS norms.
        rope_theta: Base of the rotary position embedding.
        rope_scaling: `None`, or Llama 3.1's scaling of the frequencies (`rope_type: llama3`).
        rope_parameters: Both of them, as transformers 5 writes them; kept under this name.
        tie_word_embeddings: Whether the head shares the embedding matrix.
        attention_dropout: Dropout probability on attention weights.
        initializer_range: Standard deviation of a newly initialised matrix.
        mask_token_id: Id of the mask token.
        **kwargs: Further fields, kept as they are and written back on export.

    Raises:
        ValueError: A field asks for a variant that is not implemented here.
    """

    has_qkv_bias = False
    has_qk_norm = False

    def __init__(
        self,
        hidden_size: int = 4096,
        intermediate_size: int = 11008,
        num_hidden_layers: int = 32,
        num_attention_heads: int = 32,
        num_key_value_heads: int | None = None,
        head_dim: int | None = None,
        vocab_size: int = 32000,
        max_position_embeddings: int = 2048,
        rms_norm_eps: float = 1e-6,
        rope_theta: float = 10000.0,
        rope_scaling: dict[str, Any] | None = None,
        rope_parameters: dict[str, Any] | None = None,
        tie_word_embeddings: bool = False,
        attention_dropout: float = 0.0,
        initializer_range: float = 0.02,
        mask_token_id: int | None = None,
        **kwargs: Any,
    ) -> None:
        """Stores the fields; see the class docstring."""
        refuse_values(self.model_type, kwargs, SUPPORTED_VALUES)
        layers = set(kwargs.get("layer_types") or ["full_attention"])
        refuse_values(self.model_type, {"layer_types": layers}, {"layer_types": ({"full_attention"},)})
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads or num_attention_heads
        self.head_dim = head_dim or hidden_size // num_attention_heads
        self.vocab_size = vocab_size
        self.max_position_embeddings = max_position_embeddings
        self.rms_norm_eps = rms_norm_eps
        self.rope_parameters = read_rope(self.model_type, rope_theta, rope_parameters or rope_scaling or {})
        self.attention_dropout = attention_dropout
        self.initializer_range = initializer_range
        self.mask_token_id = mask_token_id
        super().__init__(**kwargs | {"tie_word_embeddings": tie_word_embeddings})

    @property
    def embedding_size(self) -> int:
        """Rows V of the embedding, under LLaDA's name."""
        return self.vocab_size

    @property
    def init_std(self) -> float:
        """Standard deviation of a new matrix, under LLaDA's name."""
        return self.initializer_range


def read_rope(model_type: str, theta: float, parameters: dict[str, Any]) -> dict[str, Any]:
    """Base and scaling of the rotary frequencies, as transformers 5 names them.

    Args:
        model_type: For messages.
        theta: The base, where it stands apart, as in transformers 4.
        parameters: `rope_parameters`, or transformers 4's `rope_scaling`, whose `rope_type` was once `type`.

    Raises:
        ValueError: The scaling is neither none nor Llama 3.1's.
    """
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    refuse_values(model_type, {"rope_type": kind}, {"rope_type": ("default", "llama3")})
    return {"rope_theta": theta} | parameters | {"rope_type": kind}


def scaled_frequencies(config: PretrainedConfig, device: torch.device) -> Tensor:
    """Radians a position, float32 (head_dim / 2,), with Llama 3.1's scaling where the config has it.

    Frequencies that turn fewer than `low_freq_factor` times in the original length are divided by `factor`, those that
    turn more than `high_freq_factor` times stay, and those between are interpolated.

    Source: meta-llama/llama-models, `apply_scaling`.
    """
    rope = config.rope_parameters
    frequencies = rotary_frequencies(config.head_dim, rope["rope_theta"], device)
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


class LlamaAttention(nn.Module):
    """Attention over every visible position, with Qwen2's biases or Qwen3's norms where the config has them."""

    def __init__(self, config: LlamaLayoutConfig) -> None:
        """Creates the matrices under their official names."""
        super().__init__()
        width, self.head_dim = config.hidden_size, config.head_dim
        self.dropout = config.attention_dropout
        inner, outer = config.num_attention_heads * self.head_dim, config.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(width, inner, bias=config.has_qkv_bias)
        self.k_proj = nn.Linear(width, outer, bias=config.has_qkv_bias)
        self.v_proj = nn.Linear(width, outer, bias=config.has_qkv_bias)
        self.o_proj = nn.Linear(inner, width, bias=False)
        if config.has_qk_norm:
            self.q_norm = RMSNorm(self.head_dim, config.rms_norm_eps)
            self.k_norm = RMSNorm(self.head_dim, config.rms_norm_eps)
        self.has_qk_norm = config.has_qk_norm

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor, visible: Visible) -> Tensor:
        """Maps (B, L, D) to (B, L, D)."""
        query, key, value = (
            split_heads(project(hidden), self.head_dim) for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.has_qk_norm:
            query, key = self.q_norm(query), self.k_norm(key)
        dropout = self.dropout if self.training else 0.0
        return self.o_proj(attend(rotate(query, cos, sin), rotate(key, cos, sin), value, visible, dropout))


class GatedMLP(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, config: LlamaLayoutConfig) -> None:
        """Creates the matrices under their official names."""
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """Maps (B, L, D) to (B, L, D)."""
        return self.down_proj(F.silu(self.gate_proj(hidden)) * self.up_proj(hidden))


class LlamaLayer(nn.Module):
    """One pre-norm layer: attention, then a gated feed-forward layer."""

    def __init__(self, config: LlamaLayoutConfig) -> None:
        """Creates the modules under their official names."""
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = LlamaAttention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = GatedMLP(config)

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor, visible: Visible) -> Tensor:
        """Maps (B, L, D) to (B, L, D)."""
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), cos, sin, visible)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class LlamaStack(nn.Module):
    """Embedding, layers and final norm, under the official key names."""

    def __init__(self, config: LlamaLayoutConfig) -> None:
        """Creates the modules."""
        super().__init__()
        self.embed_tokens = TokenEmbedding(config.vocab_size, config.hidden_size)
        self.layers = DecoderLayers([LlamaLayer(config) for _ in range(config.num_hidden_layers)])
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class LlamaLayoutLM(MaskedDiffusionLM):
    """The layers with a language-model head; each `model_type` has its subclass."""

    config_class: type[PretrainedConfig] = LlamaLayoutConfig
    _no_split_modules = ["LlamaLayer"]  # noqa: RUF012

    def __init__(self, config: LlamaLayoutConfig) -> None:
        """Creates the model with new weights; the head is missing where the weights are tied."""
        super().__init__(config)
        self.model = LlamaStack(config)
        if not config.tie_word_embeddings:
            self.lm_head = VocabularyHead(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The embedding module."""
        return self.model.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the embedding module."""
        self.model.embed_tokens = value

    def get_output_embeddings(self) -> nn.Module | None:
        """The head module, or `None` where the weights are tied (the embedding is the head)."""
        return None if self.config.tie_word_embeddings else self.lm_head

    def encode(self, input_ids: Tensor, attention_mask: Visible = None, position_ids: Tensor | None = None) -> Tensor:
        """See `MaskedDiffusionLM.encode`."""
        positions = default_positions(input_ids, position_ids)
        cos, sin = rotary_tables(positions, scaled_frequencies(self.config, input_ids.device))
        hidden = self.model.embed_tokens(input_ids)
        hidden = self.model.norm(self.model.layers.run(hidden, cos, sin, as_visible(attention_mask)))
        return align(hidden, positions) if self.config.right_shift_logits else hidden

    def head(self, hidden: Tensor, through: HeadFunction = F.linear) -> Any:
        """See `MaskedDiffusionLM.head`."""
        if self.config.tie_word_embeddings:
            return self.model.embed_tokens(hidden, through)
        return self.lm_head(hidden, through)
