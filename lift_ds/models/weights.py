"""Weights by name, from a folder of safetensors or drawn anew, into a whole or a partitioned model.

Under ZeRO-3 a parameter is a flat tensor cut into equal contiguous ranges, one a rank. Each rank maps the file and
copies only its own range, so nothing is broadcast and no rank ever holds a whole matrix.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Protocol

import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from lift_ds.rng import Stream, keyed_generator

from .families import check_tokenizer, family_of, read_config
from .sentencepiece_tokenizer import load_sentencepiece
from .shards import INDEX_FILE, SINGLE_FILE

BUILTIN_BASE = "builtin:base"
LISTED_KEYS = 8


class WeightSource(Protocol):
    """Named tensors of a whole model."""

    def shapes(self) -> dict[str, torch.Size]:
        """Every name with its shape, without reading data."""

    def tensor(self, name: str) -> Tensor:
        """One tensor; mapped from disk where possible."""


class SafetensorsFolder:
    """A folder with `model.safetensors`, or shards and their index."""

    def __init__(self, folder: Path) -> None:
        """Opens the headers.

        Raises:
            ValueError: There are no safetensors, or a shard that the index names is missing.
        """
        self.folder = folder
        if (folder / INDEX_FILE).is_file():
            index = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))["weight_map"]
            names = sorted(set(index.values()))
        else:
            names = [SINGLE_FILE]
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise ValueError(f"{folder}: {', '.join(missing)} missing; weights are read from safetensors only.")
        try:
            self.files = {name: safe_open(folder / name, framework="pt") for name in names}
        except Exception as error:
            raise ValueError(f"{folder}: a safetensors file cannot be read: {error}. Is it whole?") from error
        self.file_of = {key: file for file in self.files.values() for key in file.keys()}  # noqa: SIM118

    def shapes(self) -> dict[str, torch.Size]:
        """Shapes from the headers."""
        return {key: torch.Size(file.get_slice(key).get_shape()) for key, file in self.file_of.items()}

    def tensor(self, name: str) -> Tensor:
        """A tensor that is paged in as it is read."""
        return self.file_of[name].get_tensor(name)


class NewWeights:
    """Fresh weights: ones for vectors, Normal(0, init_std) for matrices, keyed by (seed, place in the model)."""

    def __init__(self, config: PretrainedConfig, seed: int) -> None:
        """Lists the names from a model without data."""
        with torch.device("meta"):
            model = family_of(config).model_class(config)
        self.named = {name: parameter.shape for name, parameter in model.named_parameters()}
        self.place = {name: place for place, name in enumerate(self.named)}
        self.seed, self.std = seed, float(config.init_std)

    def shapes(self) -> dict[str, torch.Size]:
        """Shapes of every parameter."""
        return self.named

    def tensor(self, name: str) -> Tensor:
        """Draws one tensor; the same on every rank."""
        shape = self.named[name]
        if len(shape) == 1:
            return torch.ones(shape)
        generator = keyed_generator(self.seed, 0, self.place[name], Stream.INITIAL_WEIGHTS)
        return torch.from_numpy(generator.standard_normal(tuple(shape), dtype="float32")) * self.std


def resolve_folder(path: str, with_weights: bool = True) -> Path:
    """The local folder of a model: the built-in base, a folder, or a hub name, which is fetched.

    Args:
        path: `builtin:base`, a folder, or a hub name.
        with_weights: Fetch the weights too, not only config and tokenizer.

    Raises:
        ValueError: It is no folder, and the hub does not have it or cannot be reached.
    """
    if path == BUILTIN_BASE:
        return Path(str(files("lift_ds") / "assets" / "base"))
    if Path(path).is_dir():
        return Path(path)
    try:
        patterns = ["*.json", "*.model", "*.jinja", "*.txt", *(["*.safetensors"] if with_weights else [])]
        return Path(snapshot_download(path, allow_patterns=patterns))
    except Exception as error:
        raise ValueError(
            f"model.path={path!r}: no such folder, and fetching it as a hub name failed: "
            f"{type(error).__name__}: {str(error).splitlines()[0]}"
        ) from error


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase | None:
    """The folder's tokenizer, or `None` where it has none.

    Raises:
        ValueError: All it has is a `tokenizer.model` that is no sentencepiece model.
    """
    if any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        return AutoTokenizer.from_pretrained(folder)
    return load_sentencepiece(folder) if (folder / "tokenizer.model").is_file() else None


def check_names(wanted: dict[str, torch.Size], found: dict[str, torch.Size], label: str) -> None:
    """Compares names and shapes.

    Raises:
        ValueError: Keys are missing, unexpected or of another shape; the message lists them.
    """
    problems = [("missing", sorted(set(wanted) - set(found))), ("unexpected", sorted(set(found) - set(wanted)))]
    mismatched = [key for key in wanted if key in found and wanted[key] != found[key]]
    problems.append(("shape differs", [f"{key} {tuple(found[key])} for {tuple(wanted[key])}" for key in mismatched]))
    lines = [f"{kind} ({len(keys)}): {shorten(keys)}" for kind, keys in problems if keys]
    if lines:
        raise ValueError(f"{label}: the weights do not fit the model's config.\n  " + "\n  ".join(lines))


def shorten(keys: list[str]) -> str:
    """The first keys of a list."""
    more = f", and {len(keys) - LISTED_KEYS} more" if len(keys) > LISTED_KEYS else ""
    return ", ".join(keys[:LISTED_KEYS]) + more


def fill_parameters(parameters: Iterable[tuple[str, nn.Parameter]], source: WeightSource, label: str) -> None:
    """Copies weights into a model, whole or partitioned by ZeRO-3.

    Args:
        parameters: Names and parameters; a partitioned one has `ds_tensor`, this rank's range of the flattened matrix.
        source: The weights.
        label: What to call the source in messages.

    Raises:
        ValueError: Names or shapes do not fit; nothing has been copied then.
    """
    named = dict(parameters)
    check_names({name: whole_shape(parameter) for name, parameter in named.items()}, source.shapes(), label)
    for name, parameter in named.items():
        tensor = source.tensor(name)
        part = getattr(parameter, "ds_tensor", None)
        if part is None:
            parameter.data.copy_(tensor)
            continue
        start = part.numel() * getattr(parameter, "ds_zero_partition_rank")  # noqa: B009 - DeepSpeed's attribute
        mine = tensor.flatten()[start : start + part.numel()]
        part.data[: mine.numel()].copy_(mine)


def whole_shape(parameter: nn.Parameter) -> torch.Size:
    """Shape of a parameter before ZeRO-3 cut it."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))


def load_pretrained(
    path: str | Path, dtype: torch.dtype | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """Loads a masked diffusion model of a supported family.

    Args:
        path: Folder in the public layout, hub name, or `builtin:base`.
        dtype: Type of the weights; as stored where not given.

    Returns:
        The model in eval mode, whose `model(input_ids=...).logits` are aligned (row i predicts token i), and its
        tokenizer, `None` where the folder has none.

    Raises:
        ValueError: The folder is not there, is of another family, or its weights or ids do not fit its config.
    """
    folder = resolve_folder(str(path))
    config = read_config(folder)
    source = SafetensorsFolder(folder)
    tokenizer = load_tokenizer(folder)
    if tokenizer is not None:
        check_tokenizer(config, tokenizer, folder)
    with torch.device("meta"):
        model = family_of(config).model_class(config)
    wanted = {name: parameter.shape for name, parameter in model.named_parameters()}
    check_names(wanted, source.shapes(), str(folder))
    state = {name: source.tensor(name) for name in wanted}
    model.load_state_dict(
        {name: tensor.clone().to(dtype or tensor.dtype) for name, tensor in state.items()}, assign=True
    )
    return model.eval().requires_grad_(True), tokenizer
