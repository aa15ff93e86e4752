"""A checkpoint as a Hugging Face folder."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
from torch import Tensor

from lift_ds.models.export import DTYPES, export_folder
from lift_ds.models.lora import merge_adapters

from .checkpoint import ZERO_TAG
from lift_ds.checkpoint.manifest import find_faults, read_manifest

ROOT_PREFIX = "model."


def convert_checkpoint(checkpoint: Path, output: Path, dtype_name: str = "auto") -> None:
    """Exports a checkpoint of this trainer.

    Args:
        checkpoint: Folder of a whole checkpoint, `.../checkpoints/step-NNNNNN`.
        output: Folder to create.
        dtype_name: `auto` (what the run computed in), or a key of `models.export.DTYPES`.

    Raises:
        ValueError: The checkpoint is not whole, or `output` is not empty.
    """
    faults = find_faults(checkpoint, read_manifest(checkpoint))
    if faults:
        raise ValueError(f"{checkpoint} is not whole: {'; '.join(faults)}.")
    run = json.loads((checkpoint / "run.json").read_text(encoding="utf-8"))
    if dtype_name == "auto":
        dtype_name = "bfloat16" if run["deepspeed"]["bf16"]["enabled"] else "float32"
    lora = run["run"]["lora"]
    state = merge_adapters(read_master_weights(checkpoint), lora["rank"], lora["alpha"])
    export_folder(state, checkpoint / "hf", output, DTYPES[dtype_name])


def read_master_weights(checkpoint: Path) -> dict[str, Tensor]:
    """The float32 weights of a checkpoint, by their names in the model; adapters are still apart."""
    state = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint), tag=ZERO_TAG)
    return {name.removeprefix(ROOT_PREFIX): tensor.to(torch.float32) for name, tensor in state.items()}
