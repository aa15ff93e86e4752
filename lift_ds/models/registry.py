"""The families in use: one import and one line each. Each is described by the row at the end of its file."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, AutoModel, PretrainedConfig

from . import a2d, dream, llada, llada2, llada_llama, llada_moe, sdar
from .family import ControlIds, Family

FAMILIES: dict[str, Family] = {}


def register(family: Family) -> None:
    """Makes a family known, here and to transformers' `AutoConfig` and `AutoModel`.

    A second layout of a `model_type` is found by `families.read_config` only. Where several layouts fit a folder, the
    one that was registered first is taken.

    Raises:
        ValueError: Another family has its name, or a config class of the same name, by which exports are recognised.
    """
    for other in FAMILIES.values():
        if other == family:
            return
        if other.name == family.name or other.config_class.__name__ == family.config_class.__name__:
            raise ValueError(
                f"family {family.name!r} ({family.config_class.__name__}): {other.name!r} "
                f"({other.config_class.__name__}) is registered; choose another name for both family and config class."
            )
    FAMILIES[family.name] = family
    if family.name == family.model_type:
        AutoConfig.register(family.name, family.config_class, exist_ok=True)
    AutoModel.register(family.config_class, family.model_class, exist_ok=True)


for _family in (
    llada.FAMILY,
    dream.FAMILY,
    *a2d.FAMILIES,
    llada_llama.FAMILY,
    llada_moe.FAMILY,
    llada2.FAMILY,
    sdar.FAMILY,
):
    register(_family)


def family_of(config: PretrainedConfig) -> Family:
    """The row of a config, also of one that transformers made from the files of an export.

    Raises:
        ValueError: It is of no family.
    """
    name = type(config).__name__  # by name: an export brings classes of its own, which have the same
    for family in FAMILIES.values():
        if family.config_class.__name__ == name:
            return family
    raise ValueError(f"a model with a {name} is of no family known here: {', '.join(FAMILIES)}.")


def is_blockwise(config: Any) -> bool:
    """Whether a config, of any family or none, is that of a model that denoises block after block."""
    name = type(config).__name__
    return any(family.is_blockwise for family in FAMILIES.values() if family.config_class.__name__ == name)


def refuse_blockwise(config: Any, instead: str) -> None:
    """Refuses what holds for models without an order of blocks only; `instead` says what to do.

    Raises:
        ValueError: The config is that of a model that denoises block after block.
    """
    if is_blockwise(config):
        raise ValueError(f"{family_of(config).name}: it denoises block after block; {instead}")


def model_types() -> list[str]:
    """Every `model_type` that has a row."""
    return list(dict.fromkeys(family.model_type for family in FAMILIES.values()))


def adapted_families(is_blockwise: bool = False) -> dict[str, Family]:
    """The families, with an order of blocks or without, that autoregressive models become, by these' `model_type`."""
    return {
        family.adapted_from: family
        for family in FAMILIES.values()
        if family.adapted_from is not None and family.is_blockwise == is_blockwise
    }


def head_names() -> list[str]:
    """Names of the heads' matrices, or their ends."""
    return list(dict.fromkeys(family.head for family in FAMILIES.values()))


def standard_tokenizer(class_name: str | None) -> str | None:
    """The class of transformers that a class of a family's remote code is; `None` for every other class."""
    known = {name: standard for family in FAMILIES.values() for name, standard in family.tokenizer_classes.items()}
    return known.get(str(class_name))


def published_ids(model_type: str, num_rows: int) -> ControlIds | None:
    """The published ids of a `model_type` with a vocabulary of this many rows, where there are any."""
    same_type = (family for family in FAMILIES.values() if family.model_type == model_type)
    return next((family.published_ids[num_rows] for family in same_type if num_rows in family.published_ids), None)
