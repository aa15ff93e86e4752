"""Ranges of files into memory and back, as many bytes at a time as the system takes."""

from __future__ import annotations

import os

import torch
from torch import Tensor


def bytes_of(flat: Tensor) -> memoryview:
    """The memory of a flat, contiguous tensor on the CPU."""
    return flat.view(torch.uint8).numpy().data


def write_at(handle: int, data: memoryview, offset: int) -> None:
    """Writes all of `data` at a byte of a file; one call to the system takes at most 2 GiB."""
    while data:
        written = os.pwrite(handle, data, offset)
        data, offset = data[written:], offset + written


def read_at(handle: int, into: memoryview, offset: int) -> int:
    """Fills `into` from a byte of a file on; returns how many bytes the file lacks for that.

    One call to the system gives at most 2 GiB.
    """
    while into:
        count = os.preadv(handle, [into], offset)
        if count == 0:
            break
        into, offset = into[count:], offset + count
    return len(into)
