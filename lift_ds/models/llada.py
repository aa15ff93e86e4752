"""LLaDA, a bidirectional Llama-style transformer that predicts masked tokens in place.

This file depends on torch and transformers alone, because every export carries a copy of it: a folder that
`tools/zero_to_hf.py` wrote loads with `trust_remote_code=True` where lift_ds is not installed.

Shapes: B sequences, L tokens, D model width, H heads, V vocabulary rows.
Source: key names, config fields and arithmetic of GSAI-ML/LLaDA-8B (public modelling code).
Differs: an attention mask is honoured (the public code ignores it); rotary tables are computed in each forward, never
kept in a buffer, so no loader can leave garbage in them; gradient checkpointing works.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

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
        for name, allowed in SUPPORTED_VALUES.items():
            if name in kwargs and kwargs[name] not in allowed:
                raise ValueError(
                    f"LLaDA config: {name}={kwargs[name]!r} is not implemented; allowed: {allowed}. "
                    "LLaDA-8B Base, Instruct and 1.5 use the allowed values."
                )
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
    def hidden_size(self) -> int:
        """Width D, under the name that DeepSpeed and transformers look for."""
        return self.d_model

    @property
    def num_hidden_layers(self) -> int:
        """Number of blocks, under the name that transformers looks for."""
        return self.n_layers


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps), in float32, cast back, times a learned weight."""

    def __init__(self, width: int, eps: float) -> None:
        """Creates a weight of `width` ones."""
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, hidden: Tensor) -> Tensor:
        """Normalises the last dimension."""
        wide = hidden.float()
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * normed.to(hidden.dtype)


def rotary_tables(position_ids: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary embedding, in float32.

    Args:
        position_ids: (B, L) or (1, L) positions.
        head_dim: Width of one head.
        theta: Base of the geometric progression of frequencies.

    Returns:
        Two tensors (B or 1, 1, L, head_dim); the two halves of the last dimension are equal (half-split rotation).
    """
    exponents = torch.arange(0, head_dim, 2, device=position_ids.device, dtype=torch.float32) / head_dim
    angles = position_ids[:, None, :, None].float() * (1.0 / theta**exponents)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates queries or keys (B, H, L, head_dim) in float32 and casts back."""
    wide = heads.float()
    first, second = wide.chunk(2, dim=-1)
    return (wide * cos + torch.cat((-second, first), dim=-1) * sin).to(heads.dtype)


AttentionFunction = Callable[[Tensor, Tensor, Tensor, float], Tensor]
Visible = Tensor | AttentionFunction | None


class LLaDABlock(nn.Module):
    """One pre-norm block: attention over every visible position, then a gated feed-forward layer."""

    def __init__(self, config: LLaDAConfig) -> None:
        """Creates the matrices under their official names."""
        super().__init__()
        width, head_dim = config.d_model, config.d_model // config.n_heads
        self.head_dim = head_dim
        self.grouped = config.n_kv_heads != config.n_heads
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
        """Bidirectional attention; `visible` is bool (B, 1, 1 or L, L), true where a key may be seen, or a function."""
        batch, length, width = hidden.shape

        def heads(projected: Tensor) -> Tensor:
            return projected.view(batch, length, -1, self.head_dim).transpose(1, 2)

        query, key = (rotate(heads(each(hidden)), cos, sin) for each in (self.q_proj, self.k_proj))
        value, dropout = heads(self.v_proj(hidden)), self.attention_dropout if self.training else 0.0
        if callable(visible):
            attended = visible(query, key, value, dropout)
        else:
            attended = F.scaled_dot_product_attention(
                query, key, value, attn_mask=visible, dropout_p=dropout, enable_gqa=self.grouped
            )
        return self.attn_out(attended.transpose(1, 2).reshape(batch, length, width))

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor, visible: Visible) -> Tensor:
        """Maps (B, L, D) to (B, L, D)."""
        attended = self.attend(self.attn_norm(hidden), cos, sin, visible)
        hidden = hidden + F.dropout(attended, self.residual_dropout, self.training)
        normed = self.ff_norm(hidden)
        gated = self.ff_out(F.silu(self.ff_proj(normed)) * self.up_proj(normed))
        return hidden + F.dropout(gated, self.residual_dropout, self.training)


HeadFunction = Callable[[Tensor, Tensor], Any]


class TokenEmbedding(nn.Embedding):
    """An embedding that is also the head where the weights are tied.

    Both uses go through `forward`, which is where ZeRO-3 gathers the matrix.
    """

    def forward(self, input: Tensor, through: HeadFunction | None = None) -> Any:
        """Embeddings of ids (B, L), or `through(hidden states, matrix)`."""
        return super().forward(input) if through is None else through(input, self.weight)


class VocabularyHead(nn.Linear):
    """The head; what is computed with its matrix is computed inside, which is where ZeRO-3 gathers it."""

    def forward(self, input: Tensor, through: HeadFunction = F.linear) -> Any:
        """`through(hidden states, matrix)`."""
        return through(input, self.weight)


class LLaDAModel(nn.Module):
    """Embedding, blocks, final norm and head, under the official key names."""

    def __init__(self, config: LLaDAConfig) -> None:
        """Creates the modules; the head is missing where the weights are tied."""
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        self._gradient_checkpointing_func: Callable[..., Any] = checkpoint
        modules: dict[str, nn.Module] = {
            "wte": TokenEmbedding(config.embedding_size, config.d_model),
            "blocks": nn.ModuleList(LLaDABlock(config) for _ in range(config.n_layers)),
            "ln_f": RMSNorm(config.d_model, config.rms_norm_eps),
        }
        if not config.weight_tying:
            modules["ff_out"] = VocabularyHead(config.d_model, config.embedding_size, bias=False)
        self.transformer = nn.ModuleDict(modules)

    @property
    def blocks(self) -> nn.ModuleList:
        """The decoder layers."""
        blocks = self.transformer["blocks"]
        assert isinstance(blocks, nn.ModuleList)
        return blocks

    def encode(self, input_ids: Tensor, attention_mask: Visible = None, position_ids: Tensor | None = None) -> Tensor:
        """Hidden states (B, L, D) after the final norm; see `LLaDAModelLM.encode`."""
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        visible = attention_mask
        if isinstance(visible, Tensor):
            visible = visible.bool()
            visible = visible[:, None, None, :] if visible.dim() == 2 else visible
        cos, sin = rotary_tables(position_ids, self.config.d_model // self.config.n_heads, self.config.rope_theta)
        hidden = self.transformer["wte"](input_ids)
        hidden = F.dropout(hidden, self.config.embedding_dropout, self.training)
        for block in self.blocks:
            if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
                hidden = self._gradient_checkpointing_func(block.__call__, hidden, cos, sin, visible)
            else:
                hidden = block(hidden, cos, sin, visible)
        return self.transformer["ln_f"](hidden)

    def head(self, hidden: Tensor, through: HeadFunction) -> Any:
        """See `LLaDAModelLM.head`."""
        return self.transformer["wte" if self.config.weight_tying else "ff_out"](hidden, through)


class LLaDAModelLM(PreTrainedModel):
    """LLaDA with its language-model head. Row i of the logits predicts token i: no shift."""

    config_class = LLaDAConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["LLaDABlock"]  # noqa: RUF012
    _supports_sdpa = True

    def __init__(self, config: LLaDAConfig) -> None:
        """Creates the model with new weights; loading replaces them."""
        super().__init__(config)
        self.model = LLaDAModel(config)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Normal(0, init_std) for matrices, ones for norms."""
        if isinstance(module, (nn.Linear, nn.Embedding)):
            module.weight.data.normal_(0.0, self.config.init_std)
        elif isinstance(module, RMSNorm):
            module.weight.data.fill_(1.0)

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
        """Hidden states after the final norm, ready for `head`.

        Args:
            input_ids: (B, L) token ids.
            attention_mask: (B, L), true where a position may be attended to, or (B, 1, L, L), or a function from
                queries, keys, values (B, H, L, head_dim) and a dropout probability to (B, H, L, head_dim).
            position_ids: (B, L) rotary positions; 0 to L-1 where not given.

        Returns:
            (B, L, D). Row i holds what `head` needs to predict token i.
        """
        return self.model.encode(input_ids, attention_mask, position_ids)

    def head(self, hidden: Tensor, through: HeadFunction = F.linear) -> Any:
        """Logits (..., V) of hidden states (..., D), or what `through` makes of them and the vocabulary matrix (V, D).

        Callers pass only the rows they need.
        """
        return self.model.head(hidden, through)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        **unused: Any,
    ) -> CausalLMOutput:
        """Logits (B, L, V) of every position; arguments as in `encode`.

        Raises:
            ValueError: `labels` was given. A masked diffusion loss needs a mask and a level, which labels do not hold.
        """
        if unused.get("labels") is not None:
            raise ValueError("LLaDA's forward computes no loss from `labels`; use lift_ds.sft_loss(...).")
        return CausalLMOutput(logits=self.head(self.encode(input_ids, attention_mask, position_ids)))
