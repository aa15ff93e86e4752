"""Weights as a Hugging Face folder that loads anywhere, with or without lift_ds.

The folder carries the original config fields, the tokenizer, safetensors under the official names, and for the
families of this package one self-contained modelling file, which `auto_map` names. Weights are written as they come, a
chunk at a time.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lift_ds.models.family import read_raw_config
from lift_ds.storage.run_record import RUN_FILE
from lift_ds.storage.safetensors_file import READABLE, ShardWriter
from lift_ds.storage.safetensors_folder import ADAPTER_CONFIG
from lift_ds.storage.staging import staged_folder
from lift_ds.storage.stored_tensor import CHUNK_ELEMENTS, Chunked, TensorSpec

from .modeling_file import joined_source

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MAX_SHARD_BYTES = 5 * 10**9
COMPANION_SUFFIXES = (".json", ".jinja", ".model", ".txt")
NOT_COMPANIONS = ("config.json", "trainer_state.json", ADAPTER_CONFIG, RUN_FILE)


@dataclass(frozen=True)
class _InMemory(Chunked):
    tensor: Tensor

    def chunks(self, size: int) -> Iterator[tuple[int, Tensor]]:
        yield 0, self.tensor


def write_folder(
    tensors: Mapping[str, Chunked],
    specs: dict[str, TensorSpec],
    output: Path,
    max_shard_bytes: int,
    after_chunk: Callable[[str, int], object],
    add_files: Callable[[Path], object],
) -> None:
    """Writes weights, and what belongs to them, into a folder that appears when it is whole.

    Args:
        tensors: The weights.
        specs: Their shapes, and the types that are written.
        output: Folder to create.
        max_shard_bytes: Most bytes of weights in a file.
        after_chunk: Called with the name and the number of elements of each chunk that was written.
        add_files: Called with the folder when all weights are written; what it raises undoes all.

    Raises:
        ValueError: `output` exists and holds something.
        RuntimeError: The place cannot be written, or is full.
    """
    with staged_folder(output, sum(spec.num_bytes for spec in specs.values())) as folder:
        with ShardWriter(folder, specs, max_shard_bytes) as writer:
            for name, tensor in tensors.items():
                for start, chunk in tensor.chunks(CHUNK_ELEMENTS):
                    writer.write(name, chunk, start)
                    after_chunk(name, chunk.numel())
        add_files(folder)
        for path in folder.iterdir():
            path.chmod(READABLE)


def export_folder(
    state: dict[str, Tensor], hf_folder: Path, output: Path, dtype: torch.dtype, max_shard_bytes: int = MAX_SHARD_BYTES
) -> None:
    """Writes a model folder from weights in memory; see `export_tensors`."""
    tensors = {name: _InMemory(tensor.shape, tensor.dtype, tensor) for name, tensor in state.items()}
    export_tensors(tensors, hf_folder, output, dtype, max_shard_bytes)


def export_tensors(
    tensors: Mapping[str, Chunked],
    hf_folder: Path | None,
    output: Path,
    dtype: torch.dtype,
    max_shard_bytes: int,
    after_chunk: Callable[[int], object] = lambda num_elements: None,
    add_files: Callable[[Path], object] = lambda folder: None,
) -> None:
    """Writes a model folder; see `write_folder`.

    Args:
        tensors: Every parameter and buffer under its official name.
        hf_folder: Config and tokenizer of the base model; `None` writes weights only.
        output: Folder to create.
        dtype: Type of floating-point weights; others, and buffers, keep theirs.
        max_shard_bytes: As in `write_folder`.
        after_chunk: Called with the number of elements of each chunk that was written.
        add_files: As in `write_folder`.

    Raises:
        ValueError: The names or shapes are not those of the config, or `output` exists and holds something.
        RuntimeError: The place cannot be written, or is full.
    """
    specs = written_specs(tensors, hf_folder, dtype)
    official = None if hf_folder is None else official_shapes(hf_folder)
    if official is not None:
        from lift_ds.models.weights import check_names

        check_names(official, {name: spec.shape for name, spec in specs.items()}, str(hf_folder))

    def add_all(folder: Path) -> None:
        if hf_folder is not None:
            for path in companions(hf_folder):
                shutil.copyfile(path, folder / path.name)
            write_config(hf_folder, folder, dtype)
        add_files(folder)

    write_folder(tensors, specs, output, max_shard_bytes, lambda _, count: after_chunk(count), add_all)


def written_specs(
    tensors: Mapping[str, TensorSpec], hf_folder: Path | None, dtype: torch.dtype
) -> dict[str, TensorSpec]:
    """Shapes and types in the files: floating-point weights are of this type, buffers keep theirs."""
    kept = set() if hf_folder is None else buffer_names(hf_folder)
    changes = {name for name, tensor in tensors.items() if tensor.dtype.is_floating_point} - kept
    return {name: TensorSpec(each.shape, dtype if name in changes else each.dtype) for name, each in tensors.items()}


def buffer_names(hf_folder: Path) -> set[str]:
    """Names of the persistent buffers of a config's model; none for families that this package does not know."""
    if not is_supported(hf_folder):
        return set()
    from lift_ds.models.families import read_config
    from lift_ds.models.hollow import hollow_model

    return {name for name, _ in hollow_model(read_config(hf_folder, is_complete=False)).named_buffers()}


def is_supported(hf_folder: Path) -> bool:
    """Whether a folder's config is of a family of this package; see `read_raw_config`."""
    from lift_ds.models.registry import model_types

    return read_raw_config(hf_folder).get("model_type") in model_types()


def official_shapes(hf_folder: Path) -> dict[str, torch.Size] | None:
    """Names and shapes of the weights of a config's model; `None` for families that this package does not know.

    Raises:
        ValueError: There is no config, or it is not usable.
    """
    if not is_supported(hf_folder):
        return None
    from lift_ds.models.families import read_config
    from lift_ds.models.weights import parameter_shapes

    return parameter_shapes(read_config(hf_folder, is_complete=False))


def companions(hf_folder: Path) -> list[Path]:
    """Tokenizer, template and settings beside a config: everything that belongs to a model but config and weights.

    Code comes along where the config's `auto_map` needs it and this package has none of its own for the family.
    """
    suffixes: tuple[str, ...] = COMPANION_SUFFIXES
    if "auto_map" in read_raw_config(hf_folder) and not is_supported(hf_folder):
        suffixes += (".py",)
    return [
        path
        for path in sorted(hf_folder.iterdir())
        if path.is_file()
        and path.suffix in suffixes
        and path.name not in NOT_COMPANIONS
        and not path.name.endswith(".index.json")
    ]


def write_json(path: Path, values: dict[str, Any]) -> None:
    """A config as model folders have it."""
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def write_config(hf_folder: Path, folder: Path, dtype: torch.dtype) -> None:
    """Writes `config.json`; for a family of this package it points at the modelling file, which is written too."""
    values = read_raw_config(hf_folder)
    if is_supported(hf_folder):
        values |= _write_modeling_file(hf_folder, folder, values)
    values["torch_dtype"] = str(dtype).removeprefix("torch.")
    values.pop("dtype", None)
    write_json(folder / "config.json", values)


def _write_modeling_file(hf_folder: Path, folder: Path, values: dict[str, Any]) -> dict[str, Any]:
    """Also a tokenizer config that needs no code of others; gives the config's new fields, and ids that it lacks."""
    from lift_ds.models.families import family_of, read_config
    from lift_ds.models.vocabulary import NEEDED_IDS, TOKENIZER_CONFIG, portable_tokenizer_config

    config = read_config(hf_folder, is_complete=False)
    family = family_of(config)
    source_module = family.model_class.__module__
    module = f"modeling_{source_module.rpartition('.')[2]}"
    model_name = f"{module}.{family.model_class.__name__}"
    (folder / f"{module}.py").write_text(joined_source(source_module), encoding="utf-8")
    if (hf_folder / TOKENIZER_CONFIG).is_file():
        write_json(folder / TOKENIZER_CONFIG, portable_tokenizer_config(hf_folder))
    known = {name: getattr(config, name, None) for name in (*NEEDED_IDS, "block_size") if values.get(name) is None}
    return {name: value for name, value in known.items() if value is not None} | {
        "auto_map": {
            "AutoConfig": f"{module}.{family.config_class.__name__}",
            "AutoModel": model_name,
            "AutoModelForCausalLM": model_name,
        },
        "architectures": [family.model_class.__name__],
    }
