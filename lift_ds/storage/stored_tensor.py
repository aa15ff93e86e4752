"""Tensors that stay on disk until a range of them is asked for, and is read by exact bytes."""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

CRC_BLOCK_BYTES = 1 << 20
CHUNK_ELEMENTS = 1 << 20  # of a tensor that is read, converted and written piece by piece


def blocks(start: int, stop: int) -> Iterator[tuple[int, int]]:
    """A range in blocks of at most `CHUNK_ELEMENTS`."""
    for low in range(start, stop, CHUNK_ELEMENTS):
        yield low, min(low + CHUNK_ELEMENTS, stop)


def bytes_of(flat: Tensor) -> memoryview:
    """The memory of a flat, contiguous tensor on the CPU."""
    return flat.view(torch.uint8).numpy().data


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of a tensor that lies row by row, in elements."""
    return tuple(math.prod(max(size, 1) for size in shape[dimension + 1 :]) for dimension in range(len(shape)))


@dataclass(frozen=True)
class TensorSpec:
    """What a tensor is, without its data."""

    shape: torch.Size
    dtype: torch.dtype

    @property
    def num_elements(self) -> int:
        """Number of elements; 1 for a scalar."""
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """Bytes in a file."""
        return self.num_elements * self.dtype.itemsize


@dataclass(frozen=True)
class Chunked(TensorSpec):
    """A tensor that is read in chunks."""

    def chunks(self, size: int) -> Iterator[tuple[int, Tensor]]:
        """Its flattened elements, about `size` at a time, each chunk with the place of its first element."""
        raise NotImplementedError


@dataclass(frozen=True)
class Storage:
    """A run of elements in a file from the byte `offset` on, and the CRC-32 of its bytes, where the file gives it."""

    path: Path
    offset: int
    num_elements: int
    dtype: torch.dtype
    crc: int = 0

    @property
    def num_bytes(self) -> int:
        """Length in bytes."""
        return self.num_elements * self.dtype.itemsize

    def read(self, start: int, stop: int) -> Tensor:
        """Elements from `start` up to `stop`."""
        elements = torch.empty(stop - start, dtype=self.dtype)
        self.read_into(start, elements)
        return elements

    def read_into(self, start: int, target: Tensor) -> None:
        """Fills a flat, contiguous tensor of the same type on the CPU with the elements from `start` on.

        Raises:
            ValueError: They are not in the storage.
            RuntimeError: The file ends before them.
        """
        stop = start + target.numel()
        if not 0 <= start <= stop <= self.num_elements:
            raise ValueError(f"{self.path}: elements {start} to {stop} of {self.num_elements} were asked for.")
        into, offset = bytes_of(target), self.offset + start * self.dtype.itemsize
        with open(self.path, "rb", buffering=0) as file:
            while into:  # one call to the system gives at most 2 GiB
                count = os.preadv(file.fileno(), [into], offset)
                if count == 0:
                    raise RuntimeError(f"{self.path} ends at byte {offset}; it became shorter while it was read.")
                into, offset = into[count:], offset + count

    def has_valid_crc(self) -> bool:
        """Whether its bytes are those that were written."""
        crc, bytes_of_file = 0, Storage(self.path, self.offset, self.num_bytes, torch.uint8)
        for start in range(0, self.num_bytes, CRC_BLOCK_BYTES):
            stop = min(start + CRC_BLOCK_BYTES, self.num_bytes)
            crc = zlib.crc32(bytes_of(bytes_of_file.read(start, stop)), crc)
        return crc == self.crc


@dataclass(frozen=True)
class StoredTensor(TensorSpec):
    """A view of a storage; `start` and `stride` count elements."""

    storage: Storage
    start: int
    stride: tuple[int, ...]

    @property
    def is_contiguous(self) -> bool:
        """Whether the elements stand in order, without gaps."""
        steps = zip(self.shape, self.stride, row_major(self.shape), strict=True)
        return all(size == 1 or step == expected for size, step, expected in steps)

    def read_into(self, start: int, target: Tensor) -> None:
        """Fills a tensor with the flattened elements from `start` on; one that is not in order is read as a whole."""
        if self.is_contiguous:
            self.storage.read_into(self.start + start, target)
            return
        last = self.start + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))
        whole = self.storage.read(self.start, last + 1)
        target.copy_(torch.as_strided(whole, self.shape, self.stride).flatten()[start : start + target.numel()])

    def read(self, start: int, stop: int) -> Tensor:
        """The flattened elements from `start` up to `stop`."""
        elements = torch.empty(stop - start, dtype=self.dtype)
        self.read_into(start, elements)
        return elements

    def load(self) -> Tensor:
        """The whole tensor."""
        return self.read(0, self.num_elements).view(self.shape)


def find_damage(storages: Iterable[Storage]) -> list[str]:
    """Which files hold storages that are not what was written."""
    return sorted({f"{storage.path} has changed (checksum)" for storage in storages if not storage.has_valid_crc()})
