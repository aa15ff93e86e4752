"""Weights as a Hugging Face folder that loads anywhere, with or without lift_ds.

The folder carries the original config fields, the tokenizer, safetensors under the official names, and one
self-contained modelling file, which `auto_map` names. It is written under a temporary name and renamed when whole.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
from importlib.resources import files
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor
from transformers import PretrainedConfig

from .families import family_of, read_config
from .layout import read_raw_config
from .shards import INDEX_FILE
from .vocabulary import NEEDED_IDS, TOKENIZER_CONFIG, portable_tokenizer_config
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
    config = read_config(hf_folder, state)
    family = family_of(config)
    with torch.device("meta"):
        model = family.model_class(config)
    wanted = {name: parameter.shape for name, parameter in model.named_parameters()}
    check_names(wanted, {name: tensor.shape for name, tensor in state.items()}, str(hf_folder))
    temporary = output.parent / f".writing-{output.name}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    write_shards({name: tensor.to(dtype).contiguous() for name, tensor in state.items()}, temporary)
    write_config(hf_folder, temporary, config, dtype)
    for path in sorted(hf_folder.iterdir()):
        if path.is_file() and path.name != "config.json" and path.suffix in (".json", ".jinja", ".model", ".txt"):
            shutil.copyfile(path, temporary / path.name)
    if (hf_folder / TOKENIZER_CONFIG).is_file():
        values = portable_tokenizer_config(hf_folder)
        (temporary / TOKENIZER_CONFIG).write_text(json.dumps(values, indent=2) + "\n")
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


def write_config(hf_folder: Path, folder: Path, config: PretrainedConfig, dtype: torch.dtype) -> None:
    """Writes `config.json`, pointing at the modelling file, and that file; ids that were resolved are written too."""
    values = read_raw_config(hf_folder)
    values |= {name: getattr(config, name) for name in NEEDED_IDS if values.get(name) is None}
    family = family_of(config)
    target = f"modeling_{family.modeling_file}"
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
    (folder / target).write_text(joined_source(family.modeling_file))


def joined_source(file_name: str) -> str:
    """The source of a modelling file as one file: in front of it, once each, the neighbours that it imports from."""
    pieces: dict[str, str] = {}

    def add(name: str) -> None:
        source = (files("lift_ds.models") / name).read_text(encoding="utf-8")
        lines = source.splitlines(keepends=True)
        for node in ast.parse(source).body:
            if not isinstance(node, ast.ImportFrom) or not (node.level or node.module == "__future__"):
                continue
            if node.level and f"{node.module}.py" not in pieces:
                add(f"{node.module}.py")
            for place in range(node.lineno - 1, node.end_lineno or node.lineno):
                lines[place] = ""
        pieces[name] = "".join(lines)

    add(file_name)
    header = f'"""The modelling code of this folder, joined from {", ".join(pieces)} of lift_ds."""'
    return "\n\n".join([header, "from __future__ import annotations", *pieces.values()])
