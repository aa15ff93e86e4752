"""A model family from outside the package, in one file: Llama's layers, with its own key names and `model_type`."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from lift_ds.models.families import Family
from lift_ds.models.family import ControlIds
from lift_ds.models.layers import HeadFunction, MaskedDiffusionModel, Visible, VocabularyHead, as_visible, rotary_tables
from lift_ds.models.layers import default_positions as positions_of
from lift_ds.models.llama import LlamaLayer, LlamaLayoutConfig, LlamaStack, scaled_frequencies


class OwnConfig(LlamaLayoutConfig):
    """Llama's fields but one: the longest sequence is called `context`."""

    model_type = "own"
    right_shift_logits = False

    def __init__(self, context: int = 64, **kwargs: Any) -> None:
        self.context = context
        super().__init__(**kwargs)


class OwnModel(MaskedDiffusionModel):
    """The layers under `body.`, and a head called `readout`."""

    config_class = OwnConfig

    def __init__(self, config: OwnConfig) -> None:
        super().__init__(config)
        self.body = LlamaStack(config)
        self.readout = VocabularyHead(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.body.embed_tokens

    def get_output_embeddings(self) -> nn.Module:
        return self.readout

    def encode(self, input_ids: Tensor, attention_mask: Visible = None, position_ids: Tensor | None = None) -> Tensor:
        frequencies = scaled_frequencies(self.config, input_ids.device)
        cos, sin = rotary_tables(positions_of(input_ids, position_ids), frequencies)
        hidden = self.body.layers.run(self.body.embed_tokens(input_ids), cos, sin, as_visible(attention_mask))
        return self.body.norm(hidden)

    def head(self, hidden: Tensor, through: HeadFunction = F.linear) -> Any:
        return self.readout(hidden, through)


FAMILY = Family(
    name="own",
    config_class=OwnConfig,
    model_class=OwnModel,
    layer_class=LlamaLayer,
    max_length_field="context",
    head="readout",
    published_ids={50: ControlIds(mask_token_id=49, eos_token_id=1, pad_token_id=2)},
)
