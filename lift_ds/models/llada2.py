"""LLaDA2.0 and 2.1: a mixture of experts that denoises block after block; the output at i predicts token i.

Shapes: B sequences, L tokens, T tokens of all sequences, K experts a token, E experts, G groups of them, D model width.
Source: key names, config fields and arithmetic of inclusionAI/LLaDA2.0-mini and inclusionAI/dFactory.
Differs: the public embedding never learns the row of the padding token, which is the end token too; here it does. The
experts' bias keeps its type, float32, where a model is cast: it decides who is chosen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from .blocks import BlockDiffusion
from .config_fields import require_fields, say_unread
from .elementwise import ElementwiseModule
from .experts import Experts, Mixture, Router
from .family import ControlIds, Family, Layout
from .layers import DecoderLayer, DecoderLayers, GatedMLP, RMSNorm, TokenEmbedding, turned
from .llama import LlamaLayoutConfig, LlamaLayoutLM

REQUIRED = (
    "attention_dropout",
    "first_k_dense_replace",
    "moe_intermediate_size",
    "n_group",
    "num_experts",
    "num_experts_per_tok",
    "num_key_value_heads",
    "num_shared_experts",
    "partial_rotary_factor",
    "rms_norm_eps",
    "rope_theta",
    "routed_scaling_factor",
    "topk_group",
)
SUPPORTED = {
    "norm_head": (False,),
    "norm_softmax": (False,),
    "right_shift_logits": (False,),
    "sliding_window": (None,),
    "use_bias": (False,),
    "use_qk_norm": (True,),
    "use_qkv_bias": (False,),
    "use_rmsnorm": (True,),
    "using_split_qkv_in_self_attention": (False,),
}


class LLaDA2MoeConfig(LlamaLayoutConfig):
    """Configuration with the official field names; see `MaskedDiffusionConfig`. No published one has `block_size`.

    Raises:
        ValueError: A field is missing, does not fit another, or asks for a variant that is not implemented here.
    """

    model_type = "llada2_moe"
    defaults = LlamaLayoutConfig.defaults | {"block_size": None, "right_shift_logits": False}
    supported = LlamaLayoutConfig.supported | SUPPORTED
    unread: ClassVar[dict[str, tuple[Any, ...]]] = {
        "embedding_dropout": (0.0, None),
        "moe_router_enable_expert_bias": (True, None),
        "norm_topk_prob": (True, None),
        "output_dropout": (0.0, None),
        "score_function": ("sigmoid", None),
    }
    has_no_defaults_at_init = True  # else transformers makes one without fields, to compare with

    def __init__(self, **kwargs: Any) -> None:
        require_fields(self.model_type, kwargs | (kwargs.get("rope_parameters") or {}), REQUIRED)
        super().__init__(**kwargs)
        turned = int(self.head_dim * self.partial_rotary_factor)
        say_unread(self.model_type, vars(self), {"rotary_dim": (turned, None)})
        count, groups, kept = self.num_experts, self.n_group, self.topk_group
        if count % groups or count // groups < 2 or not 1 <= kept <= groups:
            raise ValueError(
                f"llada2_moe config: num_experts={count}, n_group={groups}, topk_group={kept}: groups of at least two "
                "experts, all of one size, and at most all of them kept are needed."
            )
        if self.num_experts_per_tok > kept * count // groups:
            raise ValueError(
                f"llada2_moe config: num_experts_per_tok={self.num_experts_per_tok}: {kept} groups of "
                f"{count // groups} have fewer experts."
            )


class GroupRouter(Router):
    """The K best experts of the best groups, by sigmoid and bias; weights are the sigmoids, made to sum to a factor."""

    expert_bias: Tensor

    def __init__(self, config: LLaDA2MoeConfig) -> None:
        super().__init__()
        self.num_chosen, self.factor = config.num_experts_per_tok, float(config.routed_scaling_factor)
        self.num_groups, self.num_kept = config.n_group, config.topk_group
        self.weight = nn.Parameter(torch.zeros(config.num_experts, config.hidden_size))
        self.register_buffer("expert_bias", torch.zeros(config.num_experts, dtype=torch.float32))

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> GroupRouter:
        """Moves, but casts the weight alone."""
        bias = self.expert_bias
        super()._apply(fn, recurse)
        device = self.expert_bias.device
        self.expert_bias = torch.empty(bias.shape, device=device) if bias.is_meta else bias.float().to(device)
        return self

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (T, E), experts int64 (T, K) and weights (T, K), of tokens (T, D); all in float32."""
        logits = F.linear(tokens.float(), self.weight.float())
        scores = logits.sigmoid()
        ranked = (scores + self.expert_bias).unflatten(-1, (self.num_groups, -1))
        kept = ranked.topk(2, dim=-1).values.sum(-1).topk(self.num_kept, dim=-1).indices
        is_left_out = torch.ones_like(ranked[..., 0], dtype=torch.bool).scatter(-1, kept, False)
        ranked = ranked.masked_fill(is_left_out[..., None], -torch.inf).flatten(-2)
        chosen = ranked.topk(self.num_chosen, dim=-1).indices
        weights = scores.gather(-1, chosen)
        return logits, chosen, weights / (weights.sum(-1, keepdim=True) + 1e-20) * self.factor

    def probabilities(self, logits: Tensor) -> Tensor:
        """See `Router`: the sigmoids, without bias or groups, made to sum to 1."""
        scores = logits.sigmoid()
        return scores / scores.sum(-1, keepdim=True)


class LLaDA2Attention(ElementwiseModule):
    """The matrices of attention: one for queries, keys and values, in this order, and the output's."""

    def __init__(self, config: LLaDA2MoeConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.num_heads = (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads)
        self.query_key_value = nn.Linear(config.hidden_size, sum(self.num_heads) * self.head_dim, bias=False)
        self.query_layernorm = RMSNorm(self.head_dim, config.rms_norm_eps)
        self.key_layernorm = RMSNorm(self.head_dim, config.rms_norm_eps)
        self.dense = nn.Linear(config.num_attention_heads * self.head_dim, config.hidden_size, bias=False)


class LLaDA2Layer(DecoderLayer):
    """One pre-norm layer: attention, then experts or, in the first layers, a dense feed-forward layer."""

    def __init__(self, config: LLaDA2MoeConfig, index: int) -> None:
        super().__init__()
        width = config.hidden_size
        self.attention_dropout = config.attention_dropout
        self.input_layernorm = RMSNorm(width, config.rms_norm_eps)
        self.attention = LLaDA2Attention(config)
        self.post_attention_layernorm = RMSNorm(width, config.rms_norm_eps)
        self.mlp: nn.Module
        if index < config.first_k_dense_replace:
            self.mlp = GatedMLP(width, config.intermediate_size)
        else:
            experts = Experts(config.num_experts, width, config.moe_intermediate_size)
            shared = config.moe_intermediate_size * config.num_shared_experts
            self.mlp = Mixture(GroupRouter(config), experts, width, shared)

    def before_attention(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `DecoderLayer`."""
        attention = self.attention
        projected = attention.query_key_value(self.input_layernorm(hidden)).unflatten(-1, (-1, attention.head_dim))
        query, key, value = projected.split(attention.num_heads, dim=2)
        query, key = attention.query_layernorm(query), attention.key_layernorm(key)
        return turned(attention, query, key, value, cos, sin)

    def after_attention(self, hidden: Tensor, attended: Tensor) -> Tensor:
        """See `DecoderLayer`."""
        hidden = hidden + self.attention.dense(attended)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class LLaDA2Stack(nn.Module):
    """Embedding, layers and final norm, under the official key names."""

    def __init__(self, config: LLaDA2MoeConfig) -> None:
        super().__init__()
        self.word_embeddings = TokenEmbedding(config.vocab_size, config.hidden_size)
        self.layers = DecoderLayers([LLaDA2Layer(config, index) for index in range(config.num_hidden_layers)])
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class LLaDA2MoeModelLM(BlockDiffusion, LlamaLayoutLM):
    """LLaDA2 with its language-model head."""

    config_class = LLaDA2MoeConfig
    stack_class = LLaDA2Stack
    embedding_name = "model.word_embeddings"
    _no_split_modules = ["LLaDA2Layer"]  # noqa: RUF012


FAMILY = Family(
    name="llada2_moe",
    config_class=LLaDA2MoeConfig,
    model_class=LLaDA2MoeModelLM,
    layer_class=LLaDA2Layer,
    layout=Layout("LLaDA2", "model.word_embeddings.weight", "num_experts", without=("*.mlp.experts.gate_proj",)),
    published_ids={157184: ControlIds(mask_token_id=156895, eos_token_id=156892, pad_token_id=156892)},
    end_is_padding=True,
    is_blockwise=True,
    published_block_sizes={157184: 32},
)
