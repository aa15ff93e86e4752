"""The row in which a family's file ends: what the rest of the package needs to know of the family.

Exports carry a family's file without its row and without what the file imports from here; see `export.modeling_file`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

# Config fields, or patterns of weights' names, of models that share a `model_type` with families known here.
MIXTURE_MARKS = ("num_experts", "*.experts.*")
VISION_MARKS = ("*vision_tower*", "*mm_projector*")
MASK_TOKENS = ("<|mdm_mask|>", "<|mask|>", "[MASK]", "<mask>")


@dataclass(frozen=True)
class ControlIds:
    """Published ids of control tokens, under the config's names."""

    mask_token_id: int
    eos_token_id: int
    pad_token_id: int
    bos_token_id: int | None = None


@dataclass(frozen=True)
class Layout:
    """How a folder is told from others of its `model_type`.

    Args:
        example: Whose layout it is, for messages.
        weights: Pattern that one of the weights' names has, as `fnmatch` reads it.
        config_field: Field that the config has, asked for only where the weights' names are not known.
        without: Config fields and patterns of weights' names that no folder in this layout has.
    """

    example: str
    weights: str
    config_field: str
    without: tuple[str, ...] = ()

    def fits(self, raw: Mapping[str, Any], names: Collection[str]) -> bool:
        """Whether a folder with such fields and weights (none where their names are not known) is in it."""
        if has_mark(self.without, raw, names):
            return False
        return any(fnmatchcase(name, self.weights) for name in names) if names else self.config_field in raw

    def __str__(self) -> str:
        return f"weights named {self.weights} ({self.example}, with {self.config_field} in the config)"


def has_mark(marks: Collection[str], raw: Mapping[str, Any], names: Collection[str]) -> bool:
    """Whether a mark is a field of a config, or the pattern of a weight's name."""
    return any(mark in raw or any(fnmatchcase(name, mark) for name in names) for mark in marks)


@dataclass(frozen=True)
class Family:
    """What the rest of the package needs to know of a family; `registry.register` makes it known.

    Args:
        name: Its name; the `model_type`, except for a further layout of one.
        config_class: Reads `config.json`, and has `embedding_size` (rows V of the vocabulary matrix), `init_std` and
            `right_shift_logits` (whether the model shifts its outputs inside `encode`).
        model_class: Provides `encode` and `head`; its logits are aligned (row i predicts token i). Exports carry its
            module, joined with what that imports from its neighbours and from this package.
        layer_class: The decoder layer, gathered as a whole by ZeRO-3 and compiled as a whole.
        layout: How its folders are told from others of the `model_type`; `None` where there are no others.
        max_length_field: Config field with the longest sequence, in tokens.
        head: Name of the head's matrix, or its end; adapters leave it out.
        published_ids: Ids of control tokens by rows V, where neither config nor tokenizer names them; they hold for
            every layout of the `model_type`. Another vocabulary has other ids.
        mask_tokens: What the mask id may decode to, besides the tokenizer's own mask token.
        tokenizer_classes: Tokenizer classes of the family's remote code that are one of transformers' by another name.
        start_token_fields: Config fields that may hold the token before a document's first one, in order; asked only
            where outputs are shifted. Qwen's vocabularies name no start token; their end token stands between texts.
        adapted_from: `model_type` of the autoregressive models that `export.adapt` makes into this family's.
    """

    name: str
    config_class: type[PretrainedConfig]
    model_class: type[PreTrainedModel]
    layer_class: type
    layout: Layout | None = None
    max_length_field: str = "max_position_embeddings"
    head: str = "lm_head"
    published_ids: Mapping[int, ControlIds] = field(default_factory=dict)
    mask_tokens: tuple[str, ...] = MASK_TOKENS
    tokenizer_classes: Mapping[str, str] = field(default_factory=dict)
    start_token_fields: tuple[str, ...] = ("bos_token_id", "eos_token_id")
    adapted_from: str | None = None

    @property
    def model_type(self) -> str:
        """The `model_type` of its configs."""
        return str(self.config_class.model_type)
