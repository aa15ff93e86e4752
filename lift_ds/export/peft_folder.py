"""Adapters in PEFT's own format: `adapter_config.json` and `adapter_model.safetensors`, read and judged.

    W  becomes  W + scale * B A,   scale = alpha / r, or alpha / sqrt(r) with rslora

Source: peft 0.21 (names, patterns, scaling). What would change the update in another way is refused by name.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from peft.utils.other import get_pattern_key
from torch import Tensor

from lift_ds.models.lora import low_rank_update
from lift_ds.storage.file_diagnosis import explain
from lift_ds.storage.safetensors_folder import (
    ADAPTER_CONFIG,
    ADAPTER_PREFIX,
    ADAPTER_WEIGHTS,
    SafetensorsFolder,
    shorten,
)
from lift_ds.text_files import load_json, read_text

DOWN = ".lora_A.weight"
UP = ".lora_B.weight"
NEUTRAL_KEYS = frozenset(
    "alpha_pattern auto_mapping base_model_name_or_path eva_config exclude_modules inference_mode "
    "layers_pattern layers_to_transform lora_alpha lora_dropout megatron_core peft_type peft_version qalora_group_size "
    "r rank_pattern revision runtime_config target_modules task_type use_rslora".split()
)
NEUTRAL_VALUES: dict[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),
}


class AdapterFolder:
    """LoRA adapters of a folder; the weights are read one pair at a time.

    Attributes:
        targets: Names of the base's weights that have adapters, with r.
        target_shapes: Shapes of the matrices that these were made for.

    Raises:
        ValueError: A file is missing or broken, the config asks for something that cannot be merged, a pair is not
            whole, or its rank is not the config's.
    """

    def __init__(self, folder: Path) -> None:
        self.config = read_adapter_config(folder / ADAPTER_CONFIG)
        self.path = folder / ADAPTER_WEIGHTS
        if not self.path.is_file():
            raise ValueError(f"{folder}: {ADAPTER_WEIGHTS} is missing; adapters are read from safetensors only.")
        self.weights = SafetensorsFolder(folder, only=ADAPTER_WEIGHTS)
        shapes = self.weights.shapes()
        strange = [key for key in shapes if not (key.startswith(ADAPTER_PREFIX) and key.endswith((DOWN, UP)))]
        if strange:
            raise ValueError(f"{self.path}: {shorten(strange)}: only A and B of linear layers can be merged.")
        stems = sorted({key.removesuffix(DOWN).removesuffix(UP) for key in shapes})
        missing = [key for stem in stems for key in (stem + DOWN, stem + UP) if key not in shapes]
        if missing or not stems:
            raise ValueError(f"{self.path}: half an adapter: {shorten(missing) or 'it is empty'}; fetch it again.")
        self.targets: dict[str, int] = {}
        self.target_shapes: dict[str, torch.Size] = {}
        for stem in stems:
            down, up = shapes[stem + DOWN], shapes[stem + UP]
            rank = int(self._of_pattern(stem, "rank_pattern", "r"))
            if len(down) != 2 or len(up) != 2 or not down[0] == up[1] == rank:
                raise ValueError(f"{self.path}: {stem}: A {tuple(down)} and B {tuple(up)} are no pair of rank {rank}.")
            name = stem.removeprefix(ADAPTER_PREFIX) + ".weight"
            self.targets[name], self.target_shapes[name] = rank, torch.Size((up[0], down[1]))

    def _of_pattern(self, stem: str, pattern: str, default: str) -> float:
        """A module's value of `rank_pattern` or `alpha_pattern`, or the config's own."""
        patterns: dict[str, float] = self.config.get(pattern) or {}
        key = get_pattern_key(list(patterns), stem.removeprefix(ADAPTER_PREFIX))
        return patterns.get(key, self.config[default])

    def update(self, name: str) -> Tensor:
        """Scale * B A of one of the targets, float32."""
        stem = ADAPTER_PREFIX + name.removesuffix(".weight")
        down, up = (self.weights.tensor(stem + end, torch.float32) for end in (DOWN, UP))
        rank = self.targets[name]
        alpha = self._of_pattern(stem, "alpha_pattern", "lora_alpha")
        return low_rank_update(down, up, alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank))


def read_adapter_config(path: Path) -> dict[str, Any]:
    """PEFT's config of a LoRA adapter that is nothing but B A.

    Raises:
        ValueError: It cannot be read, or has what would change the update in another way; each key is named.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing; a folder that peft's save_pretrained wrote is expected.")
    try:
        config = load_json(read_text(path))
        kind = config.get("peft_type")
        assert kind != "LORA" or all(config[key] > 0 for key in ("r", "lora_alpha"))
    except (ValueError, AttributeError, KeyError, TypeError, AssertionError) as error:
        raise ValueError(
            f"{path}: no config of an adapter ({type(error).__name__}: {error}).{explain(path)}"
        ) from error
    if kind != "LORA":
        raise ValueError(f"{path}: peft_type={kind!r} cannot be merged; allowed: 'LORA'.")
    refused = [
        f"{key}={value!r}"
        for key, value in config.items()
        if key not in NEUTRAL_KEYS and (value not in NEUTRAL_VALUES[key] if key in NEUTRAL_VALUES else value)
    ]
    if refused:
        raise ValueError(
            f"{path}: {', '.join(refused)} cannot be merged tensor by tensor; use peft's own merge_and_unload, which "
            "needs the whole model in memory."
        )
    return config
