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

from .stored_tensor import Storage, StoredTensor

ZERO2_ALIGNMENT = 2


@dataclass(frozen=True)
class Fragment:
    """A range of a stored tensor's flattened elements."""

    tensor: StoredTensor
    start: int
    stop: int


@dataclass(frozen=True)
class FlatTensor:
    """A tensor whose flattened elements lie in fragments, in order.

    Args:
        shape: Its shape.
        dtype: Type of the stored elements.
        fragments: Where they are.
    """

    shape: torch.Size
    dtype: torch.dtype
    fragments: tuple[Fragment, ...]

    @property
    def num_elements(self) -> int:
        """Number of elements; 1 for a scalar."""
        return math.prod(self.shape)

    def read(self, start: int, stop: int) -> Tensor:
        """Elements of the flattened tensor from `start` up to `stop`, as stored."""
        elements = torch.empty(stop - start, dtype=self.dtype)
        position = 0
        for fragment in self.fragments:
            end = position + fragment.stop - fragment.start
            low, high = max(start, position), min(stop, end)
            if low < high:
                fragment.tensor.read_into(fragment.start + low - position, elements[low - start : high - start])
            position = end
        return elements

    def load(self) -> Tensor:
        """The whole tensor."""
        return self.read(0, self.num_elements).view(self.shape)

    def chunks(self, size: int) -> Iterator[tuple[int, Tensor]]:
        """Its elements in order, at most `size` at a time, each chunk with the position of its first element."""
        for start in range(0, self.num_elements, size):
            yield start, self.read(start, min(start + size, self.num_elements))


def whole(tensor: StoredTensor) -> FlatTensor:
    """A stored tensor as one fragment."""
    return FlatTensor(torch.Size(tensor.shape), tensor.dtype, (Fragment(tensor, 0, tensor.num_elements),))


def storages_of(tensors: Mapping[str, FlatTensor]) -> tuple[Storage, ...]:
    """Every storage that some of these tensors lie in, once."""
    return tuple({fragment.tensor.storage: None for tensor in tensors.values() for fragment in tensor.fragments})


def cut(parts: Sequence[StoredTensor], start: int, stop: int) -> Iterator[Fragment]:
    """The fragments of elements `start` to `stop` of tensors that stand one behind the other.

    Raises:
        ValueError: They have fewer elements.
    """
    position = 0
    for part in parts:
        end = position + part.num_elements
        low, high = max(start, position), min(stop, end)
        if low < high:
            yield Fragment(part, low - position, high - position)
        position = end
    if stop > position:
        raise ValueError(f"elements {start} to {stop} of {position} are needed")


def share(num_elements: int, world_size: int) -> int:
    """Elements of a rank's range under ZeRO-3, padding included."""
    return -(-num_elements // world_size)


def zero3_tensors(
    shapes: dict[str, torch.Size], ranks: Sequence[Sequence[StoredTensor]]
) -> tuple[dict[str, FlatTensor], int]:
    """Parameters in the flat groups of ZeRO-3.

    Args:
        shapes: Names and shapes of all groups, in order.
        ranks: For each rank its flat groups.

    Returns:
        The parameters, and the elements that they take on each rank.
    """
    tensors, offset = {}, 0
    for name, shape in shapes.items():
        num_elements = math.prod(shape)
        mine = share(num_elements, len(ranks))
        fragments: list[Fragment] = []
        for rank, groups in enumerate(ranks):
            filled = max(0, min(mine, num_elements - rank * mine))
            fragments += cut(groups, offset, offset + filled)
        tensors[name] = FlatTensor(torch.Size(shape), ranks[0][0].dtype, tuple(fragments))
        offset += mine
    return tensors, offset


def zero2_tensors(
    shapes: dict[str, torch.Size], parts: Sequence[StoredTensor], paddings: Sequence[int]
) -> tuple[dict[str, FlatTensor], int]:
    """Parameters in a flat group of ZeRO-1 or 2.

    Args:
        shapes: Names and shapes of the group, in order.
        parts: Each rank's part of the group.
        paddings: Elements behind each parameter.

    Returns:
        The parameters, and the elements that they take, paddings included.
    """
    tensors, offset = {}, 0
    for (name, shape), padding in zip(shapes.items(), paddings, strict=True):
        num_elements = math.prod(shape)
        fragments = tuple(cut(parts, offset, offset + num_elements))
        tensors[name] = FlatTensor(torch.Size(shape), parts[0].dtype, fragments)
        offset += num_elements + padding
    return tensors, offset


def zero2_partition(num_elements: int, world_size: int) -> int:
    """Elements of a rank's range of a group under ZeRO-1 and 2, filling included."""
    aligned = ZERO2_ALIGNMENT * world_size
    return -(-num_elements // aligned) * aligned // world_size


@dataclass(frozen=True)
class Range:
    """What a rank holds of a parameter, and where in its flat group.

    Args:
        name: The parameter.
        start: First of its flattened elements.
        stop: End of them.
        offset: Place of the first one in the rank's flat group.
    """

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
