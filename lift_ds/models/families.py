"""What a model folder and a config say of their family. The rows are in `registry`, each at the end of its file."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from transformers import PretrainedConfig

from .blocks import check_block_size
from .family import Family, detect_family, read_raw_config, stored_names
from .registry import FAMILIES, family_of, register
from .vocabulary import resolve_token_ids, settled

__all__ = ["FAMILIES", "Family", "family_of", "max_length_of", "read_config", "register", "start_token_of"]


def read_config(
    folder: Path,
    names: Collection[str] | None = None,
    mask_token_id: int | None = None,
    block_size: int | None = None,
    is_complete: bool = True,
) -> PretrainedConfig:
    """The config of a model folder, by its `model_type` and the layout of its weights, or of weights of these names.

    Args:
        folder: The folder.
        names: Names of the weights; the folder's own where not given.
        mask_token_id: The mask token, where neither config, tokenizer nor table names it.
        block_size: Tokens of a block, where a model denoises block after block and neither config nor table says it.
        is_complete: Whether control tokens and a block size that are found nowhere are an error.

    Raises:
        ValueError: There is no `config.json`, its family is unknown, a variant is not implemented, the id of a control
            token or the block size is missing, or what is given is not what the folder says.
    """
    raw, path = read_raw_config(folder), folder / "config.json"
    family = detect_family(raw, stored_names(folder) if names is None else names, FAMILIES.values(), path)
    try:
        config = family.config_class.from_pretrained(folder)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    resolve_token_ids(config, folder, mask_token_id, is_complete)
    if family.is_blockwise:
        known = config.block_size or family.published_block_sizes.get(int(config.embedding_size))
        config.block_size = settled(folder, "block_size", known, block_size)
        if config.block_size is not None or is_complete:
            check_block_size(config)
    elif block_size is not None:
        raise ValueError(f"{folder}: block_size={block_size}: {family.name} does not denoise block after block.")
    return config


def max_length_of(config: PretrainedConfig) -> int:
    """The longest sequence that a model was made for, in tokens."""
    return int(getattr(config, family_of(config).max_length_field))


def start_token_of(config: PretrainedConfig) -> int | None:
    """The token that must stand before a document whose first token is learned; `None` where none is needed.

    A shifted model predicts a token from the one before it, which a first token does not have.
    """
    if not config.right_shift_logits:
        return None
    ids = (getattr(config, name, None) for name in family_of(config).start_token_fields)
    return next(int(token_id) for token_id in ids if token_id is not None)
