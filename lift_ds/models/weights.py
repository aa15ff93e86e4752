"""Weights by name, from a folder of safetensors or drawn anew, into a whole or a partitioned model.

Under ZeRO-3 a parameter is a flat tensor cut into equal contiguous ranges, one a rank. Each rank reads the bytes of its
own range, and no others, into the memory where they stay: nothing is broadcast and no rank ever holds a whole matrix.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol

import torch
from huggingface_hub import snapshot_download
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from lift_ds.rng import Stream, keyed_generator
from lift_ds.storage.safetensors_folder import SafetensorsFolder, shorten

from .families import read_config
from .hollow import hollow_model
from .vocabulary import check_tokenizer, load_tokenizer

BUILTIN_BASE = "builtin:base"
LAYER = re.compile(r"\.(\d+)\.")
SHOWN_SIZES = 4


class NewWeights:
    """Fresh weights, keyed by (seed, index of parameter): matrices Normal(0, init_std), norms ones, biases zeros."""

    def __init__(self, config: PretrainedConfig, seed: int) -> None:
        self.named = parameter_shapes(config)
        self.index = {name: index for index, name in enumerate(self.named)}
        self.seed, self.std = seed, float(config.init_std)

    def shapes(self) -> dict[str, torch.Size]:
        """Every name with its shape, in the order in which they are best read; no data is read."""
        return self.named

    def tensor(self, name: str) -> Tensor:
        """Draws one tensor; the same on every rank."""
        shape = self.named[name]
        if len(shape) == 1:
            return torch.zeros(shape) if name.endswith("bias") else torch.ones(shape)
        generator = keyed_generator(self.seed, 0, self.index[name], Stream.INITIAL_WEIGHTS)
        return torch.from_numpy(generator.standard_normal(tuple(shape), dtype="float32")) * self.std

    def read(self, name: str, into: Tensor, start: int = 0) -> None:
        """Fills `into`, a flat tensor of any type and device, with the elements from `start` of a flattened tensor."""
        into.copy_(self.tensor(name).flatten()[start : start + into.numel()])


class WeightSource(Protocol):
    """Named tensors of a whole model, as `NewWeights` and `SafetensorsFolder` have them."""

    def shapes(self) -> dict[str, torch.Size]:
        """Every name with its shape, in the order in which they are best read; no data is read."""

    def read(self, name: str, into: Tensor, start: int = 0) -> None:
        """Fills `into`, a flat tensor of any type and device, with the elements from `start` of a flattened tensor."""


def resolve_folder(path: str, with_weights: bool = True) -> Path:
    """The local folder of a model: of `builtin:base`, of a folder, or of a hub name, which is fetched.

    Raises:
        ValueError: It is no folder, and the hub does not have it or cannot be reached.
    """
    if path == BUILTIN_BASE:
        return Path(str(files("lift_ds") / "assets" / "base"))
    if Path(path).is_dir():
        return Path(path)
    try:
        patterns = ["*.json", "*.model", "*.jinja", "*.txt", "README.md", *(["*.safetensors"] if with_weights else [])]
        return Path(snapshot_download(path, allow_patterns=patterns))
    except Exception as error:
        raise ValueError(
            f"model.path={path!r}: no such folder, and fetching it as a hub name failed: "
            f"{type(error).__name__}: {str(error).splitlines()[0]}"
        ) from error


def check_names(
    wanted: dict[str, torch.Size], stored: dict[str, torch.Size], label: str, config: PretrainedConfig | None = None
) -> None:
    """Compares names and shapes of a model's parameters with those of weights, called `label` in messages.

    Raises:
        ValueError: Keys are missing, unexpected or of another shape; the message lists them, and fields of `config`.
    """
    problems = [("missing", sorted(set(wanted) - set(stored))), ("unexpected", sorted(set(stored) - set(wanted)))]
    mismatched = [key for key in wanted if key in stored and wanted[key] != stored[key]]
    problems.append(("shape differs", [f"{key} {tuple(stored[key])} for {tuple(wanted[key])}" for key in mismatched]))
    lines = [f"{kind} ({len(keys)}): {shorten(keys)}" for kind, keys in problems if keys]
    if lines:
        lines = explain_sizes(wanted, stored, config) + lines if config is not None else lines
        raise ValueError(f"{label}: the weights do not fit the model's config.\n  " + "\n  ".join(lines))


def explain_sizes(wanted: dict[str, torch.Size], stored: dict[str, torch.Size], config: PretrainedConfig) -> list[str]:
    """Which sizes differ, as the config's fields name them: its own number and that of the weights, one a line."""
    layers = [1 + max((int(found[1]) for name in names if (found := LAYER.search(name))), default=-1)
              for names in (wanted, stored)]  # fmt: skip
    lines = [f"layers: {layers[0]} by config.json, {layers[1]} in the weights"] if layers[0] != layers[1] else []
    fields = {name: value for name, value in config.to_dict().items() if type(value) is int}
    pairs = [(key, sizes) for key in wanted if key in stored for sizes in zip(wanted[key], stored[key], strict=False)]
    for key, (ours, theirs) in pairs:
        names = "/".join(name for name, value in fields.items() if value == ours)
        if ours != theirs and names:
            lines.append(f"{names}: {ours} by config.json, {theirs} in the weights ({key})")
    return list({line.partition(" (")[0]: line for line in reversed(lines)}.values())[::-1][:SHOWN_SIZES]


def check_fit(config: PretrainedConfig, folder: Path) -> None:
    """Compares the weights of a folder with its config, before anything of them is read.

    Raises:
        ValueError: They do not fit, cannot be read, or contradict each other.
    """
    check_names(parameter_shapes(config), SafetensorsFolder(folder).shapes(), str(folder), config)


def parameter_shapes(config: PretrainedConfig) -> dict[str, torch.Size]:
    """Names and shapes of a model's parameters and persistent buffers, from a model without data."""
    return {name: tensor.shape for name, tensor in hollow_model(config).state_dict().items()}


def fill_parameters(parameters: Iterable[tuple[str, Tensor]], source: WeightSource, label: str) -> None:
    """Reads weights into contiguous parameters and buffers, whole or partitioned by ZeRO-3; see `own_ranges`.

    Raises:
        ValueError: Names or shapes do not fit; nothing has been read then.
    """
    named = dict(parameters)
    check_names({name: whole_shape(parameter) for name, parameter in named.items()}, source.shapes(), label)
    for name in source.shapes():
        num_elements = whole_shape(named[name]).numel()
        for into, start in own_ranges(named[name]):
            count = max(0, min(len(into), num_elements - start))
            source.read(name, into[:count], start)
            into[count:].zero_()  # padding, which nothing else would set


def own_ranges(parameter: Any) -> Iterator[tuple[Tensor, int]]:
    """What this rank holds of a parameter: flat tensors, and where in the flattened parameter each begins.

    Under ZeRO-3 that is `ds_tensor`, and with a secondary partition (`zero_hpz_partition_size`) the range that is kept
    within the node too. The last ones are filled up to the length of the others.
    """
    if not hasattr(parameter, "ds_tensor"):
        yield parameter.data.view(-1), 0
        return
    rank = parameter.ds_zero_partition_rank
    yield parameter.ds_tensor.data, parameter.ds_tensor.numel() * rank
    within_node = getattr(parameter, "ds_secondary_tensor", None)
    if within_node is not None:
        yield within_node.data, within_node.numel() * (rank % parameter.ds_secondary_tensor_group_size)


def whole_shape(parameter: Tensor) -> torch.Size:
    """Shape of a parameter before ZeRO-3 cut it."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))


def load_pretrained(
    path: str | Path,
    dtype: torch.dtype | None = None,
    mask_token_id: int | None = None,
    block_size: int | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """Loads a masked diffusion model of a supported family.

    Args:
        path: Folder in the public layout, hub name, or `builtin:base`.
        dtype: Type of the weights; as stored where not given.
        mask_token_id: The mask token, where neither config, tokenizer nor the family's table names it.
        block_size: Tokens of a block, where a block diffusion model's config and table name none.

    Returns:
        The model in eval mode, whose logits are aligned (row i predicts token i), and the folder's tokenizer, if any.

    Raises:
        ValueError: The folder is not there, is of another family, its weights or ids do not fit its config, or what is
            given is not what the folder says.
    """
    folder = resolve_folder(str(path))
    config = read_config(folder, None, mask_token_id, block_size)
    source = SafetensorsFolder(folder)
    tokenizer = load_tokenizer(folder)
    if tokenizer is not None:
        check_tokenizer(config, tokenizer, folder)
    check_names(parameter_shapes(config), source.shapes(), str(folder), config)
    model = hollow_model(config)
    buffers = {name for name, _ in model.named_buffers()}  # which keep their type
    types = {name: None if name in buffers else dtype for name in source.shapes()}
    model.load_state_dict({name: source.tensor(name, types[name]) for name in types}, assign=True)
    return model.eval().requires_grad_(True), tokenizer
