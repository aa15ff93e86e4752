"""LLaDA under Llama's key names, as LLaDA-V's language model has it: the same arithmetic, the same `model_type`."""

from __future__ import annotations

from typing import Any

from .family import MIXTURE_MARKS, VISION_MARKS, Family, Layout
from .layers import refuse_values
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
    """Configuration of such a LLaDA; see `LlamaLayoutConfig`.

    Args:
        right_shift_logits: Always false: the output at i predicts token i.
        **kwargs: The other fields, under Llama's or LLaDA's names.

    Raises:
        ValueError: A field asks for a variant that is not implemented here.
    """

    model_type = "llada"

    def __init__(self, right_shift_logits: bool = False, **kwargs: Any) -> None:
        """Stores the fields; see the class docstring."""
        refuse_values("LLaDA", {"right_shift_logits": right_shift_logits}, {"right_shift_logits": (False,)})
        self.right_shift_logits = right_shift_logits
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
