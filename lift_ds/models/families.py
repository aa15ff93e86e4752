"""One row per model family: its classes, and which of its modules are one unit for ZeRO-3."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel

from .a2d import A2DLlamaConfig, A2DLlamaModelLM, A2DQwen2Config, A2DQwen2ModelLM, A2DQwen3Config, A2DQwen3ModelLM
from .dream import DreamConfig, DreamModel
from .layout import detect_family, read_raw_config, stored_names
from .llada import LLaDABlock, LLaDAConfig, LLaDAModelLM
from .llada_llama import LLaDALlamaConfig, LLaDALlamaModelLM
from .llama import LlamaLayer
from .vocabulary import resolve_token_ids


@dataclass(frozen=True)
class Family:
    """What the rest of the package needs to know of a family.

    Args:
        config_class: Reads `config.json`; `right_shift_logits` says whether outputs are shifted inside `encode`.
        model_class: Provides `encode` and `head`; its logits are aligned (row i predicts token i).
        layer_class: The decoder layer, gathered as a whole by ZeRO-3.
        max_length_field: Config field with the longest sequence.
        modeling_file: The file of the model class; exports carry it, joined with what it imports from its neighbours.
    """

    config_class: type[PretrainedConfig]
    model_class: type[PreTrainedModel]
    layer_class: type
    max_length_field: str
    modeling_file: str


FAMILIES: dict[str, Family] = {
    "llada": Family(LLaDAConfig, LLaDAModelLM, LLaDABlock, "max_sequence_length", "llada.py"),
    "Dream": Family(DreamConfig, DreamModel, LlamaLayer, "max_position_embeddings", "dream.py"),
    "a2d-llama": Family(A2DLlamaConfig, A2DLlamaModelLM, LlamaLayer, "max_position_embeddings", "a2d.py"),
    "a2d-qwen2": Family(A2DQwen2Config, A2DQwen2ModelLM, LlamaLayer, "max_position_embeddings", "a2d.py"),
    "a2d-qwen3": Family(A2DQwen3Config, A2DQwen3ModelLM, LlamaLayer, "max_position_embeddings", "a2d.py"),
    "llada-llama": Family(LLaDALlamaConfig, LLaDALlamaModelLM, LlamaLayer, "max_position_embeddings", "llada_llama.py"),
}
FAMILY_OF_CLASS = {family.config_class.__name__: family for family in FAMILIES.values()}
"""By name: an export brings classes of its own, which have the same."""
MODEL_TYPES = list(dict.fromkeys(str(family.config_class.model_type) for family in FAMILIES.values()))

for _name, _family in FAMILIES.items():
    if _name in MODEL_TYPES:  # a second layout of a `model_type` is found by `read_config` only
        AutoConfig.register(_name, _family.config_class, exist_ok=True)
    AutoModel.register(_family.config_class, _family.model_class, exist_ok=True)


def read_config(folder: Path, names: Collection[str] | None = None) -> PretrainedConfig:
    """The config of a model folder, by its `model_type` and the layout of its weights.

    Args:
        folder: Has `config.json`, and perhaps weights and a tokenizer.
        names: Names of the weights, where they are not in the folder.

    Raises:
        ValueError: There is no `config.json`, its family is unknown, a variant is not implemented, or the id of a
            control token is missing.
    """
    raw, path = read_raw_config(folder), folder / "config.json"
    name = detect_family(raw, stored_names(folder) if names is None else names, MODEL_TYPES, path)
    try:
        config = FAMILIES[name].config_class.from_pretrained(folder)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    resolve_token_ids(config, folder)
    return config


def family_of(config: PretrainedConfig) -> Family:
    """The table row of a config, also of one that transformers made from the files of an export.

    Raises:
        ValueError: It is of no family.
    """
    name = type(config).__name__
    if name not in FAMILY_OF_CLASS:
        raise ValueError(f"a model with a {name} is of no family known here: {', '.join(FAMILIES)}.")
    return FAMILY_OF_CLASS[name]


def max_length_of(config: PretrainedConfig) -> int:
    """The longest sequence that a model was made for, in tokens."""
    return int(getattr(config, family_of(config).max_length_field))


def start_token_of(config: PretrainedConfig) -> int | None:
    """The token that must stand before a document whose first token is learned; `None` where none is needed.

    A shifted model predicts a token from the one before it, which a first token does not have. Qwen's vocabularies name
    no start token; their end token stands between documents.
    """
    if not config.right_shift_logits:
        return None
    start = getattr(config, "bos_token_id", None)
    return int(config.eos_token_id if start is None else start)
