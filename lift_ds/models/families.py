"""One row per model family: its classes, and which of its modules are one unit for ZeRO-3."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel

from .llada import LLaDABlock, LLaDAConfig, LLaDAModelLM

MASK_STRINGS = ("<|mdm_mask|>", "<|mask|>", "[MASK]", "<mask>")


@dataclass(frozen=True)
class Family:
    """What the rest of the package needs to know of a family.

    Args:
        config_class: Reads `config.json`.
        model_class: Provides `encode` and `head`; its logits are aligned (row i predicts token i).
        layer_class: The decoder layer, gathered as a whole by ZeRO-3.
        max_length_field: Config field with the longest sequence.
        modeling_file: The self-contained file that exports carry.
    """

    config_class: type[PretrainedConfig]
    model_class: type[PreTrainedModel]
    layer_class: type
    max_length_field: str
    modeling_file: str


FAMILIES: dict[str, Family] = {
    "llada": Family(LLaDAConfig, LLaDAModelLM, LLaDABlock, "max_sequence_length", "llada.py"),
}

for _model_type, _family in FAMILIES.items():
    AutoConfig.register(_model_type, _family.config_class, exist_ok=True)
    AutoModel.register(_family.config_class, _family.model_class, exist_ok=True)


def read_config(folder: Path) -> PretrainedConfig:
    """The config of a model folder, by its `model_type`.

    Raises:
        ValueError: There is no `config.json`, its family is unknown, or it has no usable mask id.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder}: no config.json; a model folder in the public layout is expected.")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}.") from error
    model_type = raw.get("model_type")
    if model_type not in FAMILIES:
        raise ValueError(f"{path}: model_type={model_type!r} is not supported; supported: {', '.join(FAMILIES)}.")
    refuse_relatives(raw, path)
    config = FAMILIES[model_type].config_class.from_pretrained(folder)
    check_token_ids(config, path)
    return config


def refuse_relatives(raw: dict[str, Any], path: Path) -> None:
    """Refuses models that share LLaDA's `model_type` but not its architecture.

    Raises:
        ValueError: It is LLaDA-MoE, or has another layout's fields.
    """
    if raw["model_type"] == "llada" and ("num_experts" in raw or "d_model" not in raw):
        name = "LLaDA-MoE" if "num_experts" in raw else "another layout of LLaDA (without d_model)"
        raise ValueError(f"{path}: {name} is not supported; supported: LLaDA-8B Base, Instruct and 1.5.")


def family_of(config: PretrainedConfig) -> Family:
    """The table row of a config."""
    return FAMILIES[config.model_type]


def max_length_of(config: PretrainedConfig) -> int:
    """The longest sequence that a model was made for, in tokens."""
    return int(getattr(config, family_of(config).max_length_field))


def check_token_ids(config: PretrainedConfig, path: Path) -> None:
    """Checks that mask, end and padding ids are given and are rows of the embedding.

    Raises:
        ValueError: One is missing or out of range.
    """
    rows = int(config.embedding_size)
    for name in ("mask_token_id", "eos_token_id", "pad_token_id"):
        value = getattr(config, name)
        if not isinstance(value, int) or not 0 <= value < rows:
            raise ValueError(f"{path}: {name}={value!r}: an id from 0 to {rows - 1} (embedding rows) is needed.")


def check_tokenizer(config: PretrainedConfig, tokenizer: Any, folder: Path) -> None:
    """Checks that the tokenizer agrees with the config's mask and end ids, and fits the embedding.

    Raises:
        ValueError: The mask id decodes to something that is no mask token, the end tokens differ, or the tokenizer has
            more tokens than the embedding has rows.
    """
    if len(tokenizer) > config.embedding_size:
        raise ValueError(f"{folder}: {len(tokenizer)} tokens for {config.embedding_size} embedding rows.")
    if tokenizer.eos_token_id not in (None, config.eos_token_id):
        raise ValueError(
            f"{folder}: eos_token_id={config.eos_token_id} in config.json, {tokenizer.eos_token_id} in the tokenizer; "
            "they must be the same token."
        )
    text = tokenizer.convert_ids_to_tokens(config.mask_token_id)
    if text is None or (text not in MASK_STRINGS and text != tokenizer.mask_token):
        raise ValueError(
            f"{folder}: mask_token_id={config.mask_token_id} decodes to {text!r}, which is no mask token "
            f"({', '.join(MASK_STRINGS)}); config.json and the tokenizer do not belong together."
        )
