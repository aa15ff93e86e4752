"""Which family a model folder belongs to, by its config and the names of its weights; relatives are refused by name."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lift_ds.storage.file_diagnosis import explain
from lift_ds.storage.run_record import RUN_FILE
from lift_ds.storage.safetensors_file import SINGLE_FILE, read_header
from lift_ds.storage.safetensors_folder import read_index
from lift_ds.text_files import load_json, read_text

from .family import MIXTURE_MARKS, VISION_MARKS, Family, has_mark

MIXTURE = "its layers are mixtures of experts, which are not implemented"
BLOCKWISE = "it denoises block after block with its own attention, which is not implemented"
AUTOREGRESSIVE = "it is autoregressive; tools/make_diffusion_model.py makes a masked diffusion model of it"
VISION = "LLaDA-V with its vision tower: only the language model is implemented"


@dataclass(frozen=True)
class Relative:
    """Models that no family here computes; a family that is registered for a folder comes before them.

    Args:
        model_type: Their `model_type`; any where it is `*`.
        reason: What they are, and why they are refused.
        marks: Config fields or patterns of weights' names, one of which they have; empty where the type says it.
    """

    model_type: str
    reason: str
    marks: tuple[str, ...] = ()


RELATIVES = (
    Relative("*", VISION, VISION_MARKS),
    Relative("llava_llada", VISION),
    Relative("llada", f"LLaDA-MoE: {MIXTURE}", MIXTURE_MARKS),
    Relative("llada_moe", f"LLaDA-MoE: {MIXTURE}"),
    Relative("llada2_moe", f"LLaDA2: {MIXTURE}, and {BLOCKWISE}"),
    Relative("sdar", f"SDAR: {BLOCKWISE}"),
    Relative("sdar_moe", f"SDAR-MoE: {MIXTURE}, and {BLOCKWISE}"),
)


def read_raw_config(folder: Path) -> dict[str, Any]:
    """The fields of a folder's `config.json`.

    Raises:
        ValueError: There is none, or it is no JSON object.
    """
    path = folder / "config.json"
    if not path.is_file():
        run = " This is a run: name its export, or make one with tools/zero_to_hf.py."
        hint = run if (folder / RUN_FILE).is_file() else ""
        raise ValueError(f"{folder}: no config.json; a model folder in the public layout is expected.{hint}")
    try:
        raw = load_json(read_text(path))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}.{explain(path)}") from error
    if not isinstance(raw, dict):
        raise ValueError(f"{path}: a JSON object with the model's fields is expected.")
    return raw


def stored_names(folder: Path) -> set[str]:
    """Names of a folder's weights, from the index or the one file's header; none where there are no safetensors.

    Raises:
        ValueError: Index or header cannot be read.
    """
    index = read_index(folder)
    if index is not None:
        return set(index)
    single = folder / SINGLE_FILE
    return set(read_header(single)) if single.is_file() else set()


def detect_family(raw: Mapping[str, Any], names: Collection[str], families: Collection[Family], path: Path) -> Family:
    """The family that a folder belongs to: the first of its `model_type` whose layout fits.

    Args:
        raw: Fields of its config.
        names: Names of its weights; empty where they are not known, and the config alone decides.
        families: The families in use.
        path: The config, for messages.

    Raises:
        ValueError: It is a known relative or unknown; the message says what is supported.
    """
    model_type = raw.get("model_type")
    of_type = [family for family in families if family.model_type == model_type]
    for family in of_type:
        if family.layout is None or family.layout.fits(raw, names):
            return family
    supported = ", ".join(dict.fromkeys(family.model_type for family in families))
    reason = refusal(raw, names, families)
    if reason is not None:
        raise ValueError(f"{path}: {reason}. Supported: {supported}.")
    if not of_type:
        raise ValueError(f"{path}: model_type={model_type!r} is not supported; supported: {supported}.")
    expected = " or ".join(str(family.layout) for family in of_type)
    raise ValueError(f"{path}: model_type={model_type!r}, but the layout is unknown: {expected} are expected.")


def refusal(raw: Mapping[str, Any], names: Collection[str], families: Collection[Family]) -> str | None:
    """Which known relative a folder is, and why it is refused; `None` where it is none."""
    model_type = str(raw.get("model_type"))
    for relative in RELATIVES:
        if relative.model_type in ("*", model_type) and (not relative.marks or has_mark(relative.marks, raw, names)):
            return relative.reason
    is_adapted = any(family.adapted_from == model_type for family in families)
    return f"{model_type.capitalize()}: {AUTOREGRESSIVE}" if is_adapted else None
