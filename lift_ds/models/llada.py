"""LLaDA, a bidirectional Llama-style transformer that predicts masked tokens in place.

Shapes: B sequences, L tokens, D model width, V vocabulary rows.
Source: key names, config fields and arithmetic of GSAI-ML/LLaDA-8B (public modelling code).
Differs: an attention mask is honoured (the public code ignores it); rotary tables are computed in each forward, never
kept in a buffer, so no loader can leave garbage in them; gradient checkpointing works.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from transformers import PretrainedConfig

from .family import MIXTURE_MARKS, VISION_MARKS, ControlIds, Family, Layout
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
    "rope": (True,),
    "scale_logits": (False,),
}


class LLaDAConfig(PretrainedConfig):
    """Configuration with the official field names; values that this implementation does not compute are refused.

    Args:
        d_model: Width D of the residual stream.
        n_layers: Number of blocks.
        n_heads: Number of attention heads H; D must be divisible by it.
        n_kv_heads: Number of key and value heads; `None` means `n_heads`.
        mlp_hidden_size: Width of the gated feed-forward layer.
        vocab_size: Number of token ids that the tokenizer uses.
        embedding_size: Rows V of the embedding and of the head; `None` means `vocab_size`.
        max_sequence_length: Longest sequence that the model was made for, in tokens.
        rope_theta: Base of the rotary position embedding.
        rms_norm_eps: Epsilon of the RMS norms.
        weight_tying: Whether the head shares the embedding matrix.
        attention_dropout: Dropout probability on attention weights.
        residual_dropout: Dropout probability on each block's two outputs.
        embedding_dropout: Dropout probability on the embeddings.
        init_std: Standard deviation of a newly initialised matrix.
        mask_token_id: Id of the mask token.
        eos_token_id: Id of the end token.
        pad_token_id: Id of the padding token.
        **kwargs: Further official fields, kept as they are and written back on export.

    Raises:
        ValueError: A field asks for a variant that is not implemented here.
    """

    model_type = "llada"

    def __init__(
        self,
        d_model: int = 4096,
        n_layers: int = 32,
        n_heads: int = 32,
        n_kv_heads: int | None = None,
        mlp_hidden_size: int = 12288,
        vocab_size: int = 126464,
        embedding_size: int | None = None,
        max_sequence_length: int = 4096,
        rope_theta: float = 500000.0,
        rms_norm_eps: float = 1e-5,
        weight_tying: bool = False,
        attention_dropout: float = 0.0,
        residual_dropout: float = 0.0,
        embedding_dropout: float = 0.0,
        init_std: float = 0.02,
        mask_token_id: int | None = None,
        eos_token_id: int | None = None,
        pad_token_id: int | None = None,
        **kwargs: Any,
    ) -> None:
        """Stores the fields; see the class docstring."""
        refuse_values("LLaDA", kwargs, SUPPORTED_VALUES)
        self.d_model = d_model
        self.n_layers = n_layers
        self.n_heads = n_heads
        self.n_kv_heads = n_heads if n_kv_heads is None else n_kv_heads
        self.mlp_hidden_size = mlp_hidden_size
        self.vocab_size = vocab_size
        self.embedding_size = vocab_size if embedding_size is None else embedding_size
        self.max_sequence_length = max_sequence_length
        self.rope_theta = rope_theta
        self.rms_norm_eps = rms_norm_eps
        self.weight_tying = weight_tying
        self.attention_dropout = attention_dropout
        self.residual_dropout = residual_dropout
        self.embedding_dropout = embedding_dropout
        self.init_std = init_std
        self.mask_token_id = mask_token_id
        kwargs["tie_word_embeddings"] = weight_tying
        kwargs |= {"eos_token_id": eos_token_id, "pad_token_id": pad_token_id}
        super().__init__(**kwargs)

    @property
    def right_shift_logits(self) -> bool:
        """Whether the output at i - 1 predicts token i: never."""
        return False

    @property
    def hidden_size(self) -> int:
        """Width D, under the name that DeepSpeed and transformers look for."""
        return self.d_model

    @property
    def num_hidden_layers(self) -> int:
        """Number of blocks, under the name that transformers looks for."""
        return self.n_layers


class LLaDABlock(nn.Module):
    """One pre-norm block: attention over every visible position, then a gated feed-forward layer."""

    def __init__(self, config: LLaDAConfig) -> None:
        """Creates the matrices under their official names."""
        super().__init__()
        width, head_dim = config.d_model, config.d_model // config.n_heads
        self.head_dim = head_dim
        self.attention_dropout = config.attention_dropout
        self.residual_dropout = config.residual_dropout
        self.attn_norm = RMSNorm(width, config.rms_norm_eps)
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, config.n_kv_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(width, config.n_kv_heads * head_dim, bias=False)
        self.attn_out = nn.Linear(width, width, bias=False)
        self.ff_norm = RMSNorm(width, config.rms_norm_eps)
        self.ff_proj = nn.Linear(width, config.mlp_hidden_size, bias=False)
        self.up_proj = nn.Linear(width, config.mlp_hidden_size, bias=False)
        self.ff_out = nn.Linear(config.mlp_hidden_size, width, bias=False)

    def attend(self, hidden: Tensor, cos: Tensor, sin: Tensor, visible: Visible) -> Tensor:
        """Attention over every visible position; see `layers.attend`."""
        query, key, value = (
            split_heads(project(hidden), self.head_dim) for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        dropout = self.attention_dropout if self.training else 0.0
        return self.attn_out(attend(rotate(query, cos, sin), rotate(key, cos, sin), value, visible, dropout))

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor, visible: Visible) -> Tensor:
        """Maps (B, L, D) to (B, L, D)."""
        attended = self.attend(self.attn_norm(hidden), cos, sin, visible)
        hidden = hidden + F.dropout(attended, self.residual_dropout, self.training)
        normed = self.ff_norm(hidden)
        gated = self.ff_out(F.silu(self.ff_proj(normed)) * self.up_proj(normed))
        return hidden + F.dropout(gated, self.residual_dropout, self.training)


class LLaDAModel(nn.Module):
    """Embedding, blocks, final norm and head, under the official key names."""

    def __init__(self, config: LLaDAConfig) -> None:
        """Creates the modules; the head is missing where the weights are tied."""
        super().__init__()
        self.config = config
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
        blocks = self.transformer["blocks"]
        assert isinstance(blocks, DecoderLayers)
        return blocks

    def encode(self, input_ids: Tensor, attention_mask: Visible = None, position_ids: Tensor | None = None) -> Tensor:
        """Hidden states (B, L, D) after the final norm; see `LLaDAModelLM.encode`."""
        config = self.config
        frequencies = rotary_frequencies(config.d_model // config.n_heads, config.rope_theta, input_ids.device)
        cos, sin = rotary_tables(default_positions(input_ids, position_ids), frequencies)
        hidden = F.dropout(self.transformer["wte"](input_ids), config.embedding_dropout, self.training)
        return self.transformer["ln_f"](self.blocks.run(hidden, cos, sin, as_visible(attention_mask)))

    def head(self, hidden: Tensor, through: HeadFunction) -> Any:
        """See `LLaDAModelLM.head`."""
        return self.transformer["wte" if self.config.weight_tying else "ff_out"](hidden, through)


class LLaDAModelLM(MaskedDiffusionLM):
    """LLaDA with its language-model head. No shift: the output at i predicts token i."""

    config_class = LLaDAConfig
    _no_split_modules = ["LLaDABlock"]  # noqa: RUF012

    def __init__(self, config: LLaDAConfig) -> None:
        """Creates the model with new weights; loading replaces them."""
        super().__init__(config)
        self.model = LLaDAModel(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The embedding module."""
        return self.model.transformer["wte"]

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the embedding module."""
        self.model.transformer["wte"] = value

    def get_output_embeddings(self) -> nn.Module | None:
        """The head module, or `None` where the weights are tied (the embedding is the head)."""
        return None if self.config.weight_tying else self.model.transformer["ff_out"]

    def encode(self, input_ids: Tensor, attention_mask: Visible = None, position_ids: Tensor | None = None) -> Tensor:
        """See `MaskedDiffusionLM.encode`."""
        return self.model.encode(input_ids, attention_mask, position_ids)

    def head(self, hidden: Tensor, through: HeadFunction = F.linear) -> Any:
        """See `MaskedDiffusionLM.head`."""
        return self.model.head(hidden, through)


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
