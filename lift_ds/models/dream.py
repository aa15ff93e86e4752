"""Dream (also Dream-Coder, DiffuCoder): Qwen2's layers, attending to every position, with shifted prediction."""

from __future__ import annotations

from typing import Any

from .layers import refuse_values
from .llama import LlamaLayoutConfig, LlamaLayoutLM


class DreamConfig(LlamaLayoutConfig):
    """Configuration of Dream; see `LlamaLayoutConfig`.

    Args:
        right_shift_logits: Always true: the output at i - 1 predicts token i.
        **kwargs: The other fields.

    Raises:
        ValueError: A field asks for a variant that is not implemented here.
    """

    model_type = "Dream"
    has_qkv_bias = True

    def __init__(self, right_shift_logits: bool = True, **kwargs: Any) -> None:
        """Stores the fields; see the class docstring."""
        refuse_values("Dream", {"right_shift_logits": right_shift_logits}, {"right_shift_logits": (True,)})
        self.right_shift_logits = right_shift_logits
        super().__init__(**kwargs)


class DreamModel(LlamaLayoutLM):
    """Dream with its language-model head."""

    config_class = DreamConfig
