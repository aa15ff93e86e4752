"""LLaDA-MoE: a LLaDA, with full attention, whose feed-forward layers are mixtures of experts.

Shapes: T tokens, K experts a token, E experts, D model width.
Source: key names, config fields and arithmetic of inclusionAI/LLaDA-MoE-7B-A1B.
Differs: the public embedding never learns the row of the padding token, which is the end token too; here it does.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from .config_fields import require_fields
from .experts import Experts, Mixture, Router
from .family import VISION_MARKS, ControlIds, Family, Layout
from .layers import DecoderLayer, GatedMLP
from .llama import LlamaLayer, LlamaLayoutConfig, LlamaLayoutLM, LlamaStack

REQUIRED = (
    "expert_intermediate_size",
    "num_experts",
    "num_experts_per_tok",
    "partial_rotary_factor",
    "qk_layernorm",
    "rms_norm_eps",
    "rope_theta",
)
DEFAULTS: dict[str, Any] = {
    "right_shift_logits": False,
    "moe_layer_freq": None,  # by layer, 0 for a dense one; None: all are mixtures
    "dense_intermediate_size": None,
}
SUPPORTED: dict[str, tuple[Any, ...]] = {
    "clip_qkv": (None,),
    "moe_router_enable_expert_bias": (False, None),
    "right_shift_logits": (False,),
    "shared_expert_intermediate_size": (None, 0),
}


class LLaDAMoEConfig(LlamaLayoutConfig):
    """Configuration with the official field names; see `MaskedDiffusionConfig`.

    Raises:
        ValueError: A field is missing, does not fit another, or asks for a variant that is not implemented here.
    """

    model_type = "llada"
    defaults = LlamaLayoutConfig.defaults | DEFAULTS
    supported = LlamaLayoutConfig.supported | SUPPORTED
    unread: ClassVar[dict[str, tuple[Any, ...]]] = {
        "moe_router_score_function": ("softmax", None),
        "norm_topk_prob": (False, None),
        "routed_scaling_factor": (1, None),
        "router_num_group": (None, 1),
        "router_topk_group": (None, 1),
    }
    has_no_defaults_at_init = True  # else transformers makes one without fields, to compare with

    def __init__(self, **kwargs: Any) -> None:
        require_fields(self.model_type, kwargs | (kwargs.get("rope_parameters") or {}), REQUIRED)
        super().__init__(**kwargs)
        kinds = self.moe_layer_freq
        if kinds is not None and len(kinds) != self.num_hidden_layers:
            raise ValueError(f"llada config: moe_layer_freq names {len(kinds)} layers of {self.num_hidden_layers}.")
        if kinds is not None and not all(kinds) and self.dense_intermediate_size is None:
            raise ValueError("llada config: moe_layer_freq has dense layers; dense_intermediate_size is missing.")

    @property
    def has_qk_norm(self) -> bool:  # type: ignore[override]
        """Whether queries and keys are normalised."""
        return bool(self.qk_layernorm)


class SoftmaxRouter(Router):
    """The K likeliest experts of a softmax over all of them, with their probabilities as they are."""

    def __init__(self, config: LLaDAMoEConfig) -> None:
        super().__init__()
        self.num_chosen = config.num_experts_per_tok
        self.weight = nn.Parameter(torch.zeros(config.num_experts, config.hidden_size))

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (T, E), experts int64 (T, K) and weights (T, K), of tokens (T, D)."""
        logits = F.linear(tokens, self.weight)
        weights, chosen = self.probabilities(logits).topk(self.num_chosen, dim=-1)
        return logits, chosen, weights.to(tokens.dtype)

    def probabilities(self, logits: Tensor) -> Tensor:
        """See `Router`."""
        return logits.softmax(-1, dtype=torch.float32)


class LLaDAMoELayer(LlamaLayer):
    """Llama's layer with experts."""

    def make_mlp(self, config: Any, index: int) -> nn.Module:
        """A mixture, or a dense layer where the config says so."""
        width = config.hidden_size
        if config.moe_layer_freq is not None and not config.moe_layer_freq[index]:
            return GatedMLP(width, config.dense_intermediate_size)
        experts = Experts(config.num_experts, width, config.expert_intermediate_size)
        return Mixture(SoftmaxRouter(config), experts, width)


class LLaDAMoEStack(LlamaStack):
    """Embedding, layers and final norm."""

    layer_class: ClassVar[type[DecoderLayer]] = LLaDAMoELayer


class LLaDAMoEModelLM(LlamaLayoutLM):
    """LLaDA-MoE with its language-model head. No shift: the output at i predicts token i."""

    config_class = LLaDAMoEConfig
    stack_class = LLaDAMoEStack
    _no_split_modules = ["LLaDAMoELayer"]  # noqa: RUF012


FAMILY = Family(
    name="llada-moe",
    config_class=LLaDAMoEConfig,
    model_class=LLaDAMoEModelLM,
    layer_class=LLaDAMoELayer,
    layout=Layout("LLaDA-MoE", "model.layers.*.mlp.experts.*", "num_experts", without=VISION_MARKS),
    published_ids={157184: ControlIds(mask_token_id=156895, eos_token_id=156892, pad_token_id=156892)},
)
