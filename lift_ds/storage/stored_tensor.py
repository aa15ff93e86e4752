"""Tensors that stay on disk until a range of them is asked for."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .byte_ranges import bytes_of, read_at
from .safetensors_header import TensorEntry

CRC_BLOCK_BYTES = 1 << 20
CHUNK_ELEMENTS = 1 << 20  # of a tensor that is read, converted and written piece by piece


def blocks(start: int, stop: int) -> Iterator[tuple[int, int]]:
    """A range in blocks of at most `CHUNK_ELEMENTS`."""
    for low in range(start, stop, CHUNK_ELEMENTS):
        yield low, min(low + CHUNK_ELEMENTS, stop)


@dataclass(frozen=True)
class Storage:
    """A run of elements in a file.

    Args:
        path: The file.
        offset: Byte at which it begins.
        num_elements: Its length.
        dtype: Type of the elements.
        crc: CRC-32 of its bytes, as the file gives it.
    """

    path: Path
    offset: int
    num_elements: int
    dtype: torch.dtype
    crc: int

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
        """Fills a contiguous tensor of the same type with the elements from `start` on.

        Raises:
            ValueError: The file ends before them, or they are not in the storage.
        """
        stop = start + target.numel()
        if not 0 <= start <= stop <= self.num_elements:
            raise ValueError(f"{self.path}: elements {start} to {stop} of {self.num_elements} were asked for.")
        if target.numel():
            read_bytes(self.path, self.offset + start * self.dtype.itemsize, target)

    def has_valid_crc(self) -> bool:
        """Whether its bytes are those that were written."""
        crc, bytes_of_file = 0, Storage(self.path, self.offset, self.num_bytes, torch.uint8, self.crc)
        for start in range(0, self.num_bytes, CRC_BLOCK_BYTES):
            stop = min(start + CRC_BLOCK_BYTES, self.num_bytes)
            crc = zlib.crc32(bytes_of_file.read(start, stop).numpy().data, crc)
        return crc == self.crc


@dataclass(frozen=True)
class StoredTensor:
    """A view of a storage.

    Args:
        storage: Where its elements are.
        start: First element in the storage.
        shape: Its shape.
        stride: Steps of its dimensions, in elements.
    """

    storage: Storage
    start: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def dtype(self) -> torch.dtype:
        """Type of the elements."""
        return self.storage.dtype

    @property
    def num_elements(self) -> int:
        """Number of elements; 1 for a scalar."""
        return math.prod(self.shape)

    @property
    def is_contiguous(self) -> bool:
        """Whether the elements stand in order, without gaps."""
        expected = 1
        for size, step in zip(reversed(self.shape), reversed(self.stride), strict=True):
            if size != 1 and step != expected:
                return False
            expected *= size
        return True

    def read_into(self, start: int, target: Tensor) -> None:
        """Fills a tensor with the flattened elements from `start` on; one that is not in order is read as a whole."""
        if self.is_contiguous:
            self.storage.read_into(self.start + start, target)
            return
        last = self.start + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))
        whole = self.storage.read(self.start, last + 1)
        target.copy_(torch.as_strided(whole, self.shape, self.stride).flatten()[start : start + target.numel()])

    def load(self) -> Tensor:
        """The whole tensor."""
        elements = torch.empty(self.num_elements, dtype=self.dtype)
        self.read_into(0, elements)
        return elements.view(self.shape)


def read_bytes(path: Path, offset: int, target: Tensor) -> None:
    """Fills a tensor with the bytes of a file from `offset` on.

    Raises:
        ValueError: The file ends before the tensor is full.
    """
    with open(path, "rb", buffering=0) as file:
        lacking = read_at(file.fileno(), bytes_of(target), offset)
    if lacking:
        raise ValueError(f"{path}: ends {lacking} bytes before the data that it describes; it is truncated.")


def storage_at(entry: TensorEntry) -> Storage:
    """The data of a tensor in a safetensors file, which has no CRC."""
    return Storage(entry.path, entry.offset, entry.spec.num_elements, entry.spec.dtype, crc=0)


def stored_tensor(entry: TensorEntry) -> StoredTensor:
    """A tensor of a safetensors file, row by row."""
    shape = entry.spec.shape
    return StoredTensor(storage_at(entry), 0, tuple(shape), torch.empty(shape, device="meta").stride())


def find_damage(storages: Iterable[Storage]) -> list[str]:
    """Which files hold storages that are not what was written."""
    return sorted({f"{storage.path} has changed (checksum)" for storage in storages if not storage.has_valid_crc()})
