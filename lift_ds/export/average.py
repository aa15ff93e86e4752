"""The mean of several checkpoints' weights, as a Hugging Face folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from lift_ds.storage.stored_tensor import Chunked

from .convert import Conversion, ConversionOptions, prepare_conversion


@dataclass(frozen=True)
class _Mean(Chunked):
    """The mean of tensors of one shape, in float32, summed in float64."""

    tensors: tuple[Chunked, ...]

    def chunks(self, size: int) -> Iterator[tuple[int, Tensor]]:
        for chunks in zip(*(tensor.chunks(size) for tensor in self.tensors), strict=True):
            total = sum((chunk.double() for _, chunk in chunks[1:]), chunks[0][1].double())
            yield chunks[0][0], (total / len(chunks)).float()


def _mean(tensors: tuple[Chunked, ...]) -> Chunked:
    """Of what is no floating-point tensor, the first."""
    first = tensors[0]
    return _Mean(first.shape, torch.float32, tensors) if first.dtype.is_floating_point else first


def prepare_average(paths: Sequence[Path], options: ConversionOptions) -> Conversion:
    """A conversion that writes the mean of checkpoints under the first one's config; see `prepare_conversion`.

    Raises:
        ValueError: There are fewer than two, one is not whole, or their tensors are not the same.
    """
    if len(paths) < 2:
        raise ValueError(f"{len(paths)} checkpoint given; an average needs at least two.")
    conversions = [prepare_conversion(path, options) for path in paths]
    first = conversions[0]
    expected = {name: tensor.shape for name, tensor in first.tensors.items()}
    for path, conversion in zip(paths, conversions, strict=True):
        if {name: tensor.shape for name, tensor in conversion.tensors.items()} != expected:
            raise ValueError(f"{path}: its tensors are not those of {paths[0]}; only one model can be averaged.")
        taught, other = first.chat_format, conversion.chat_format
        differ = [] if taught is None or other is None else taught.differences(other, "clock")
        if differ:
            names = ", ".join(name for name, _, _ in differ)
            raise ValueError(f"{path}: was taught in another chat format than {paths[0]} ({names}); one is needed.")
    tensors = {name: _mean(tuple(conversion.tensors[name] for conversion in conversions)) for name in expected}
    checked = tuple(storage for conversion in conversions for storage in conversion.checked)
    return replace(
        first, tensors=tensors, checked=checked, averaged=tuple(conversion.zero.step for conversion in conversions)
    )
