"""Autoregressive models made into masked diffusion models (A2D): layers of Llama, Qwen2 or Qwen3, attending everywhere.

`export/adapt.py` makes them. They have a `model_type` of their own: as `llama` a folder would load as a causal model,
and give wrong logits without a word.
"""

from __future__ import annotations

from typing import Any

from .family import Family
from .llama import LlamaLayer, LlamaLayoutConfig, LlamaLayoutLM


class A2DConfig(LlamaLayoutConfig):
    """Configuration of an adapted model.

    `right_shift_logits` says whether the output at i - 1 predicts token i, as before the adaptation. Public models of
    these types exist with either, and nothing else in a folder tells them apart.

    Raises:
        ValueError: `right_shift_logits` is missing, or a field asks for a variant that is not implemented here.
    """

    defaults = LlamaLayoutConfig.defaults | {"right_shift_logits": None}
    has_no_defaults_at_init = True  # else transformers 4 makes one without fields, to compare with

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not isinstance(self.right_shift_logits, bool):
            raise ValueError(
                f"{self.model_type} config: right_shift_logits={self.right_shift_logits!r}: true (the output at i "
                "predicts token i + 1, as tools/make_diffusion_model.py leaves it) or false (it predicts token i) is "
                "needed; write into config.json what the model was trained with."
            )


class A2DLlamaConfig(A2DConfig):
    """An adapted Llama."""

    model_type = "a2d-llama"


class A2DQwen2Config(A2DConfig):
    """An adapted Qwen2 or Qwen2.5."""

    model_type = "a2d-qwen2"
    has_qkv_bias = True


class A2DQwen3Config(A2DConfig):
    """An adapted Qwen3."""

    model_type = "a2d-qwen3"
    has_qk_norm = True


class A2DLlamaModelLM(LlamaLayoutLM):
    """An adapted Llama with its language-model head."""

    config_class = A2DLlamaConfig


class A2DQwen2ModelLM(LlamaLayoutLM):
    """An adapted Qwen2 with its language-model head."""

    config_class = A2DQwen2Config


class A2DQwen3ModelLM(LlamaLayoutLM):
    """An adapted Qwen3 with its language-model head."""

    config_class = A2DQwen3Config


FAMILIES = (
    Family("a2d-llama", A2DLlamaConfig, A2DLlamaModelLM, LlamaLayer, adapted_from="llama"),
    Family("a2d-qwen2", A2DQwen2Config, A2DQwen2ModelLM, LlamaLayer, adapted_from="qwen2"),
    Family("a2d-qwen3", A2DQwen3Config, A2DQwen3ModelLM, LlamaLayer, adapted_from="qwen3"),
)
