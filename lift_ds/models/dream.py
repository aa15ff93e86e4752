"""Dream (also Dream-Coder, DiffuCoder): Qwen2's layers, attending to every position, with shifted prediction."""

from __future__ import annotations

from .family import ControlIds, Family
from .llama import LlamaLayer, LlamaLayoutConfig, LlamaLayoutLM


class DreamConfig(LlamaLayoutConfig):
    """Configuration of Dream; `right_shift_logits` is always true: the output at i - 1 predicts token i."""

    model_type = "Dream"
    defaults = LlamaLayoutConfig.defaults | {"right_shift_logits": True}
    supported = LlamaLayoutConfig.supported | {"right_shift_logits": (True,)}
    has_qkv_bias = True


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
