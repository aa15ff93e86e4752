"""LLaDA under Llama's key names, as LLaDA-V's language model has it: the same arithmetic, the same `model_type`."""

from __future__ import annotations

from typing import Any

from .family import MIXTURE_MARKS, VISION_MARKS, Family, Layout
from .llama import LlamaLayer, LlamaLayoutConfig, LlamaLayoutLM

LLAMA_NAMES = {
    "d_model": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "mlp_hidden_size": "intermediate_size",
    "embedding_size": "vocab_size",
    "max_sequence_length": "max_position_embeddings",
    "weight_tying": "tie_word_embeddings",
    "init_std": "initializer_range",
}


class LLaDALlamaConfig(LlamaLayoutConfig):
    """Configuration of such a LLaDA, with Llama's field names or LLaDA's; the output at i predicts token i."""

    model_type = "llada"
    defaults = LlamaLayoutConfig.defaults | {"right_shift_logits": False}
    supported = LlamaLayoutConfig.supported | {"right_shift_logits": (False,)}

    def __init__(self, **kwargs: Any) -> None:
        given = {LLAMA_NAMES[name]: kwargs.pop(name) for name in LLAMA_NAMES if kwargs.get(name) is not None}
        super().__init__(**kwargs | given)


class LLaDALlamaModelLM(LlamaLayoutLM):
    """LLaDA in Llama's layout with its language-model head."""

    config_class = LLaDALlamaConfig


FAMILY = Family(
    name="llada-llama",
    config_class=LLaDALlamaConfig,
    model_class=LLaDALlamaModelLM,
    layer_class=LlamaLayer,
    layout=Layout("LLaDA-V's language model", "model.layers.*", "hidden_size", without=MIXTURE_MARKS + VISION_MARKS),
)
