"""LLaDA, a bidirectional Llama-style transformer that predicts masked tokens in place.

Shapes: B sequences, L tokens, D model width, V vocabulary rows.
Source: key names, config fields and arithmetic of GSAI-ML/LLaDA-8B (public modelling code).
Differs: an attention mask is honoured (the public code ignores it); rotary tables are computed in each forward, never
kept in a buffer, so no loader can leave garbage in them; gradient checkpointing works.
"""

from __future__ import annotations

from typing import Any, cast

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from .config_fields import MaskedDiffusionConfig
from .family import MIXTURE_MARKS, VISION_MARKS, ControlIds, Family, Layout
from .layers import (
    DecoderLayer,
    DecoderLayers,
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

SUPPORTED = {
    "activation_type": ("silu",),
    "alibi": (False,),
    "attention_layer_norm": (False,),
    "block_group_size": (1,),
    "block_type": ("llama",),
    "include_bias": (False,),
    "include_qkv_bias": (False, None),
    "input_emb_norm": (False,),
    "layer_norm_type": ("rms",),
    "multi_query_attention": (None, False),
    "right_shift_logits": (False,),
    "rope": (True,),
    "scale_logits": (False,),
}


DEFAULTS = {
    "d_model": 4096,  # width D of the residual stream
    "n_layers": 32,
    "n_heads": 32,  # attention heads; D must be divisible by their number
    "n_kv_heads": None,  # heads of keys and values; None: n_heads
    "mlp_hidden_size": 12288,  # width of the gated feed-forward layer
    "vocab_size": 126464,  # token ids that the tokenizer uses
    "embedding_size": None,  # rows V of the embedding and of the head; None: vocab_size
    "max_sequence_length": 4096,  # tokens of the longest sequence that the model was made for
    "rope_theta": 500000.0,  # base of the rotary position embedding
    "rms_norm_eps": 1e-5,
    "weight_tying": False,  # whether the head shares the embedding's matrix
    "attention_dropout": 0.0,  # probability on attention weights
    "residual_dropout": 0.0,  # probability on each block's two outputs
    "embedding_dropout": 0.0,  # probability on the embeddings
    "init_std": 0.02,  # standard deviation of a new matrix
    "mask_token_id": None,
}


class LLaDAConfig(MaskedDiffusionConfig):
    """Configuration with the official field names; see `MaskedDiffusionConfig`."""

    model_type = "llada"
    defaults = DEFAULTS
    supported = SUPPORTED
    attribute_map = {  # noqa: RUF012
        "hidden_size": "d_model",
        "num_hidden_layers": "n_layers",
        "initializer_range": "init_std",
    }
    right_shift_logits = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.n_kv_heads: int = self.n_heads if self.n_kv_heads is None else self.n_kv_heads
        self.embedding_size: int = self.vocab_size if self.embedding_size is None else self.embedding_size
        self.tie_word_embeddings = self.weight_tying


class LLaDABlock(DecoderLayer):
    """One pre-norm block: attention over every visible position, then a gated feed-forward layer."""

    def __init__(self, config: LLaDAConfig) -> None:
        super().__init__()
        width, self.head_dim = config.d_model, config.d_model // config.n_heads
        outer = config.n_kv_heads * self.head_dim
        self.attention_dropout = config.attention_dropout
        self.residual_dropout = config.residual_dropout
        self.attn_norm = RMSNorm(width, config.rms_norm_eps)
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, outer, bias=False)
        self.v_proj = nn.Linear(width, outer, bias=False)
        self.attn_out = nn.Linear(width, width, bias=False)
        self.ff_norm = RMSNorm(width, config.rms_norm_eps)
        self.ff_proj = nn.Linear(width, config.mlp_hidden_size, bias=False)
        self.up_proj = nn.Linear(width, config.mlp_hidden_size, bias=False)
        self.ff_out = nn.Linear(config.mlp_hidden_size, width, bias=False)

    def before_attention(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `DecoderLayer`."""
        return project(self, self.attn_norm(hidden), cos, sin)

    def after_attention(self, hidden: Tensor, attended: Tensor) -> Tensor:
        """See `DecoderLayer`."""
        hidden = hidden + F.dropout(self.attn_out(attended), self.residual_dropout, self.training)
        normed = self.ff_norm(hidden)
        gated = self.ff_out(self.elementwise.gate(self.ff_proj(normed), self.up_proj(normed)))
        return hidden + F.dropout(gated, self.residual_dropout, self.training)


class LLaDAModel(nn.Module):
    """Embedding, blocks, final norm and head, under the official key names; no head where the weights are tied."""

    def __init__(self, config: LLaDAConfig) -> None:
        super().__init__()
        modules: dict[str, nn.Module] = {
            "wte": TokenEmbedding(config.embedding_size, config.d_model),
            "blocks": DecoderLayers([LLaDABlock(config) for _ in range(config.n_layers)]),
            "ln_f": RMSNorm(config.d_model, config.rms_norm_eps),
        }
        if not config.weight_tying:
            modules["ff_out"] = VocabularyHead(config.d_model, config.embedding_size, bias=False)
        self.transformer = nn.ModuleDict(modules)

    @property
    def blocks(self) -> DecoderLayers:
        """The decoder layers."""
        return cast(DecoderLayers, self.transformer["blocks"])


class LLaDAModelLM(MaskedDiffusionModel):
    """LLaDA with its language-model head. No shift: the output at i predicts token i."""

    config_class = LLaDAConfig
    embedding_name = "model.transformer.wte"
    head_name = "model.transformer.ff_out"
    _no_split_modules = ["LLaDABlock"]  # noqa: RUF012

    def __init__(self, config: LLaDAConfig) -> None:
        super().__init__(config)
        self.model = LLaDAModel(config)
        self.post_init()

    def encode(self, input_ids: Tensor, attention_mask: Visible = None, position_ids: Tensor | None = None) -> Tensor:
        """See `MaskedDiffusionModel.encode`."""
        config, modules = self.config, self.model.transformer
        frequencies = rotary_frequencies(config.d_model // config.n_heads, config.rope_theta, input_ids.device)
        positions = default_positions(input_ids, position_ids)
        cos, sin = rotary_tables(positions, frequencies)
        hidden = F.dropout(modules["wte"](input_ids), config.embedding_dropout, self.training)
        return modules["ln_f"](self.model.blocks.run(hidden, cos, sin, self.visible(attention_mask, positions)))


FAMILY = Family(
    name="llada",
    config_class=LLaDAConfig,
    model_class=LLaDAModelLM,
    layer_class=LLaDABlock,
    layout=Layout("LLaDA-8B", "model.transformer.blocks.*", "d_model", without=MIXTURE_MARKS + VISION_MARKS),
    max_length_field="max_sequence_length",
    head="transformer.ff_out",
    published_ids={
        126464: ControlIds(mask_token_id=126336, eos_token_id=126081, pad_token_id=126081, bos_token_id=126080)
    },
)
