"""The mean of several checkpoints' weights, as a Hugging Face folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from .convert import Conversion, ConversionOptions, prepare_conversion
from .folder import Chunked


@dataclass(frozen=True)
class Mean:
    """The mean of tensors of one shape; what is no floating-point tensor is taken from the first.

    Args:
        tensors: The tensors.
    """

    tensors: tuple[Chunked, ...]

    @property
    def shape(self) -> torch.Size:
        """Their shape."""
        return self.tensors[0].shape

    @property
    def dtype(self) -> torch.dtype:
        """Float32, or the type of the first."""
        first = self.tensors[0].dtype
        return torch.float32 if first.is_floating_point else first

    def chunks(self, size: int) -> Iterator[tuple[int, Tensor]]:
        """Chunks of the mean, summed in float64."""
        if not self.dtype.is_floating_point:
            yield from self.tensors[0].chunks(size)
            return
        for chunks in zip(*(tensor.chunks(size) for tensor in self.tensors), strict=True):
            total = sum((chunk.double() for _, chunk in chunks[1:]), chunks[0][1].double())
            yield chunks[0][0], (total / len(chunks)).float()


def prepare_average(paths: Sequence[Path], options: ConversionOptions) -> Conversion:
    """A conversion that writes the mean of checkpoints under the first one's config.

    Args:
        paths: At least two runs, checkpoints or folders with ZeRO shards.
        options: As for one checkpoint.

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
    for path, conversion in zip(paths, conversions, strict=True):
        taught, other = first.chat_format, conversion.chat_format
        differ = [] if taught is None or other is None else taught.differences(other, "clock")
        if differ:
            names = ", ".join(name for name, _, _ in differ)
            raise ValueError(f"{path}: was taught in another chat format than {paths[0]} ({names}); one is needed.")
    tensors = {name: Mean(tuple(conversion.tensors[name] for conversion in conversions)) for name in expected}
    checked = tuple(storage for conversion in conversions for storage in conversion.checked)
    return replace(
        first, tensors=tensors, checked=checked, averaged=tuple(conversion.zero.step for conversion in conversions)
    )
