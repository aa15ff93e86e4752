"""Weights as a Hugging Face folder that loads anywhere, with or without lift_ds.

The folder carries the original config fields, the tokenizer, safetensors under the official names, and one
self-contained modelling file, which `auto_map` names. It is written under a temporary name and renamed when whole.
"""

from __future__ import annotations

import json
import os
import shutil
from importlib.resources import files
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor

from .families import family_of, read_config
from .shards import INDEX_FILE
from .weights import check_names

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MAX_SHARD_SIZE = "5GB"
READABLE = 0o644


def export_folder(state: dict[str, Tensor], hf_folder: Path, output: Path, dtype: torch.dtype) -> None:
    """Writes a model folder.

    Args:
        state: Every parameter under its official name.
        hf_folder: Config and tokenizer of the base model.
        output: Folder to create.
        dtype: Type of the written weights.

    Raises:
        ValueError: The names or shapes are not those of the config, or `output` exists and holds something.
    """
    if output.exists() and any(output.iterdir()):
        raise ValueError(f"{output} exists and is not empty; remove it or name another folder.")
    config = read_config(hf_folder)
    family = family_of(config)
    with torch.device("meta"):
        model = family.model_class(config)
    wanted = {name: parameter.shape for name, parameter in model.named_parameters()}
    check_names(wanted, {name: tensor.shape for name, tensor in state.items()}, str(hf_folder))
    temporary = output.parent / f".writing-{output.name}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    write_shards({name: tensor.to(dtype).contiguous() for name, tensor in state.items()}, temporary)
    write_config(hf_folder, temporary, family.modeling_file, dtype)
    for path in sorted(hf_folder.iterdir()):
        if path.is_file() and path.name != "config.json" and path.suffix in (".json", ".jinja", ".model", ".txt"):
            shutil.copyfile(path, temporary / path.name)
    if output.exists():
        output.rmdir()
    os.rename(temporary, output)


def write_shards(state: dict[str, Tensor], folder: Path) -> None:
    """Writes safetensors, with an index where there is more than one file."""
    plan = split_torch_state_dict_into_shards(state, max_shard_size=MAX_SHARD_SIZE)
    for file_name, names in plan.filename_to_tensors.items():
        save_file({name: state[name] for name in names}, folder / file_name, metadata={"format": "pt"})
        (folder / file_name).chmod(READABLE)
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        (folder / INDEX_FILE).write_text(json.dumps(index, indent=2))


def write_config(hf_folder: Path, folder: Path, modeling_file: str, dtype: torch.dtype) -> None:
    """Writes `config.json`, pointing at the modelling file, and that file."""
    values = json.loads((hf_folder / "config.json").read_text(encoding="utf-8"))
    family = family_of(read_config(hf_folder))
    target = f"modeling_{modeling_file}"
    module = target.removesuffix(".py")
    model_name = f"{module}.{family.model_class.__name__}"
    values["auto_map"] = {
        "AutoConfig": f"{module}.{family.config_class.__name__}",
        "AutoModel": model_name,
        "AutoModelForCausalLM": model_name,
    }
    values["architectures"] = [family.model_class.__name__]
    values["torch_dtype"] = str(dtype).removeprefix("torch.")
    values.pop("dtype", None)
    (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n")
    shutil.copyfile(str(files("lift_ds.models") / modeling_file), folder / target)
