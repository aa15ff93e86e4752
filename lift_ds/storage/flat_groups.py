"""Where a parameter's elements are in ZeRO's flat data: arithmetic on ranges, the same for reading and for cutting.

ZeRO-3: every parameter of n elements is cut over W ranks into ranges of p = ceil(n / W). A rank's flat group is the
concatenation of its ranges, so a group has sum(p) elements on each rank, and the last ranks end in padding.

ZeRO-1 and 2: the parameters of a group stand one behind the other (some versions of DeepSpeed pad between them). The
whole is filled up to a multiple of 2 W and cut into W equal ranges; saved float32 weights lack the filling.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .stored_tensor import Chunked, Storage, StoredTensor

ZERO2_ALIGNMENT = 2


@dataclass(frozen=True)
class Fragment:
    """A range of a stored tensor's flattened elements, and the place of its first one in a `FlatTensor`."""

    tensor: StoredTensor
    start: int
    stop: int
    offset: int


@dataclass(frozen=True)
class FlatTensor(Chunked):
    """A tensor whose flattened elements lie in fragments, in order; between and behind them are zeros."""

    fragments: tuple[Fragment, ...]

    def within(self, start: int, stop: int, offset: int = 0) -> Iterator[Fragment]:
        """The fragments of elements `start` to `stop`, the first of which is to have the place `offset`.

        Raises:
            ValueError: There are fewer elements.
        """
        if stop > self.num_elements:
            raise ValueError(f"elements {start} to {stop} of {self.num_elements} are needed")
        for held in self.fragments:
            low, high = max(start, held.offset), min(stop, held.offset + held.stop - held.start)
            if low < high:
                shift = held.start - held.offset
                yield Fragment(held.tensor, low + shift, high + shift, offset + low - start)

    def read(self, start: int, stop: int) -> Tensor:
        """Elements of the flattened tensor from `start` up to `stop`, as stored."""
        elements = torch.zeros(stop - start, dtype=self.dtype)
        for held in self.within(start, stop):
            held.tensor.read_into(held.start, elements[held.offset : held.offset + held.stop - held.start])
        return elements

    def load(self) -> Tensor:
        """The whole tensor."""
        return self.read(0, self.num_elements).view(self.shape)

    def chunks(self, size: int) -> Iterator[tuple[int, Tensor]]:
        """See `Chunked`; at most `size` elements at a time."""
        for start in range(0, self.num_elements, size):
            yield start, self.read(start, min(start + size, self.num_elements))


def whole(tensor: StoredTensor) -> FlatTensor:
    """A stored tensor as one fragment."""
    return FlatTensor(tensor.shape, tensor.dtype, (Fragment(tensor, 0, tensor.num_elements, 0),))


def joined(parts: Sequence[StoredTensor]) -> FlatTensor:
    """Tensors of one type, one behind the other."""
    fragments: list[Fragment] = []
    length = 0
    for part in parts:
        fragments.append(Fragment(part, 0, part.num_elements, length))
        length += part.num_elements
    return FlatTensor(torch.Size([length]), parts[0].dtype, tuple(fragments))


def storages_of(tensors: Mapping[str, FlatTensor]) -> tuple[Storage, ...]:
    """Every storage that some of these tensors lie in, once."""
    return tuple({fragment.tensor.storage: None for tensor in tensors.values() for fragment in tensor.fragments})


def share(num_elements: int, world_size: int) -> int:
    """Elements of a rank's range under ZeRO-3, padding included."""
    return -(-num_elements // world_size)


def zero2_partition(num_elements: int, world_size: int) -> int:
    """Elements of a rank's range of a group under ZeRO-1 and 2, filling included."""
    return share(num_elements, ZERO2_ALIGNMENT * world_size) * ZERO2_ALIGNMENT


@dataclass(frozen=True)
class Range:
    """What a rank holds of a parameter: flattened elements, and the place of the first in the rank's flat group."""

    name: str
    start: int
    stop: int
    offset: int


def zero3_ranges(shapes: dict[str, torch.Size], world_size: int, rank: int) -> Iterator[Range]:
    """A rank's ranges of a flat group under ZeRO-3, in order."""
    offset = 0
    for name, shape in shapes.items():
        num_elements = math.prod(shape)
        mine = share(num_elements, world_size)
        start = min(rank * mine, num_elements)
        yield Range(name, start, min(start + mine, num_elements), offset)
        offset += mine


def zero2_ranges(shapes: dict[str, torch.Size], paddings: Sequence[int], world_size: int, rank: int) -> Iterator[Range]:
    """A rank's ranges of a flat group under ZeRO-1 and 2, in order."""
    sizes = [math.prod(shape) for shape in shapes.values()]
    mine = zero2_partition(sum(sizes) + sum(paddings), world_size)
    begin = -rank * mine
    for name, size, padding in zip(shapes, sizes, paddings, strict=True):
        low, high = max(0, begin), min(mine, begin + size)
        if low < high:
            yield Range(name, low - begin, high - begin, low)
        begin += size + padding


def zero3_tensors(
    shapes: dict[str, torch.Size], ranks: Mapping[int, Sequence[StoredTensor]], world_size: int
) -> dict[str, FlatTensor]:
    """Parameters of all flat groups under ZeRO-3, in order, by the groups of ranks: what others hold is missing.

    Raises:
        ValueError: The groups have fewer elements.
    """
    groups = {rank: joined(parts) for rank, parts in ranks.items()}
    fragments: dict[str, list[Fragment]] = {name: [] for name in shapes}
    for rank, group in groups.items():
        for held in zero3_ranges(shapes, world_size, rank):
            fragments[held.name] += group.within(held.offset, held.offset + held.stop - held.start, held.start)
    dtype = next(iter(groups.values())).dtype
    return {name: FlatTensor(torch.Size(shapes[name]), dtype, tuple(fragments[name])) for name in shapes}


def zero2_tensors(
    shapes: dict[str, torch.Size], parts: Sequence[StoredTensor], paddings: Sequence[int]
) -> dict[str, FlatTensor]:
    """Parameters of a flat group under ZeRO-1 or 2, in order, by each rank's part; behind each are its paddings.

    Raises:
        ValueError: The group has fewer elements.
    """
    group, offset = joined(parts), 0
    tensors = {}
    for (name, shape), padding in zip(shapes.items(), paddings, strict=True):
        end = offset + math.prod(shape)
        tensors[name] = FlatTensor(torch.Size(shape), group.dtype, tuple(group.within(offset, end)))
        offset = end + padding
    return tensors
