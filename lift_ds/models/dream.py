"""Dream (also Dream-Coder, DiffuCoder): Qwen2's layers, attending to every position, with shifted prediction."""

from __future__ import annotations

from typing import Any

from .family import ControlIds, Family
from .layers import refuse_values
from .llama import LlamaLayer, LlamaLayoutConfig, LlamaLayoutLM


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


FAMILY = Family(
    name="Dream",
    config_class=DreamConfig,
    model_class=DreamModel,
    layer_class=LlamaLayer,
    published_ids={
        152064: ControlIds(mask_token_id=151666, eos_token_id=151643, pad_token_id=151643, bos_token_id=151665)
    },
    tokenizer_classes={"DreamTokenizer": "Qwen2Tokenizer"},  # with another start token, which the folder names
)
