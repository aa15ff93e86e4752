"""Which family a model folder belongs to, by its config and the names of its weights; relatives are refused by name."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from lift_ds.storage.safetensors_folder import read_index
from lift_ds.storage.safetensors_header import read_header
from lift_ds.storage.safetensors_writer import SINGLE_FILE

LLADA_NAMES = "model.transformer.blocks."
LLAMA_NAMES = "model.layers."
VISION_NAMES = ("vision_tower", "mm_projector")
MIXTURE = "its layers are mixtures of experts, which are not implemented"
BLOCKWISE = "it denoises block after block with its own attention, which is not implemented"
AUTOREGRESSIVE = "it is autoregressive; tools/make_diffusion_model.py makes a masked diffusion model of it"
REFUSED = {
    "llada_moe": f"LLaDA-MoE: {MIXTURE}",
    "llada2_moe": f"LLaDA2: {MIXTURE}, and {BLOCKWISE}",
    "sdar": f"SDAR: {BLOCKWISE}",
    "sdar_moe": f"SDAR-MoE: {MIXTURE}, and {BLOCKWISE}",
    "llava_llada": "LLaDA-V with its vision tower: only the language model is implemented",
    "llama": f"Llama: {AUTOREGRESSIVE}",
    "qwen2": f"Qwen2: {AUTOREGRESSIVE}",
    "qwen3": f"Qwen3: {AUTOREGRESSIVE}",
}


def read_raw_config(folder: Path) -> dict[str, Any]:
    """The fields of a folder's `config.json`.

    Raises:
        ValueError: There is none, or it is no JSON object.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder}: no config.json; a model folder in the public layout is expected.")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}.") from error
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


def detect_family(raw: dict[str, Any], names: Collection[str], supported: Collection[str], path: Path) -> str:
    """The row of `families.FAMILIES` that a folder belongs to.

    Args:
        raw: Fields of its config.
        names: Names of its weights; empty where they are not known, and the config alone decides.
        supported: Every `model_type` that has a row.
        path: The config, for messages.

    Raises:
        ValueError: It is a known relative or unknown; the message says what is supported.
    """
    model_type = raw.get("model_type")
    reason = REFUSED.get(str(model_type))
    if model_type == "llada" and ("num_experts" in raw or any(".experts." in name for name in names)):
        reason = REFUSED["llada_moe"]
    if any(part in name for name in names for part in VISION_NAMES):
        reason = REFUSED["llava_llada"]
    if reason is not None:
        raise ValueError(f"{path}: {reason}. Supported: {', '.join(supported)}.")
    if model_type not in supported:
        raise ValueError(f"{path}: model_type={model_type!r} is not supported; supported: {', '.join(supported)}.")
    return llada_layout(raw, names, path) if model_type == "llada" else str(model_type)


def llada_layout(raw: dict[str, Any], names: Collection[str], path: Path) -> str:
    """`llada`, or `llada-llama` where the weights have Llama's names.

    Raises:
        ValueError: Neither the weights' names nor the config's fields are those of a known layout.
    """
    found = {
        "llada": any(name.startswith(LLADA_NAMES) for name in names),
        "llada-llama": any(name.startswith(LLAMA_NAMES) for name in names),
    }
    if not names:
        found = {"llada": "d_model" in raw, "llada-llama": "d_model" not in raw and "hidden_size" in raw}
    layouts = [layout for layout, is_found in found.items() if is_found]
    if len(layouts) != 1:
        raise ValueError(
            f"{path}: model_type='llada', but the layout is unknown: weights named {LLADA_NAMES}N... (LLaDA-8B, with "
            f"d_model in the config) or {LLAMA_NAMES}N... (LLaDA-V's language model, with hidden_size) are expected."
        )
    return layouts[0]
