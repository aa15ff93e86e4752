"""Safetensors files of a folder, written as data comes: headers first, then tensors in pieces.

    specs = {"a.weight": TensorSpec(torch.Size([4, 3]), torch.bfloat16)}
    with ShardWriter(folder, specs, max_shard_bytes=5 * 10**9) as writer:
        writer.write("a.weight", first_half)                 # pieces of the flattened tensor, in any order
        writer.write("a.weight", second_half, start=6)

The files are planned from names, shapes and types alone, so that no more than one piece is ever held.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType

from torch import Tensor

from .safetensors_header import make_header
from .stored_tensor import TensorSpec, bytes_of

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
SHARD_FILE = "model-{number:05d}-of-{total:05d}.safetensors"
READABLE = 0o644


def plan_shards(specs: dict[str, TensorSpec], max_shard_bytes: int) -> dict[str, dict[str, TensorSpec]]:
    """Which file holds which tensors, in the given order.

    Args:
        specs: Every tensor.
        max_shard_bytes: Most bytes of data in a file; a larger tensor gets a file of its own.

    Returns:
        Tensors by file name. Inside a file wider types come first, so that every tensor is aligned to its type.
    """
    shards: list[dict[str, TensorSpec]] = [{}]
    taken = 0
    for name, spec in specs.items():
        if shards[-1] and taken + spec.num_bytes > max_shard_bytes:
            shards.append({})
            taken = 0
        shards[-1][name] = spec
        taken += spec.num_bytes
    ordered = [dict(sorted(shard.items(), key=lambda item: -item[1].dtype.itemsize)) for shard in shards]
    if len(ordered) == 1:
        return {SINGLE_FILE: ordered[0]}
    return {SHARD_FILE.format(number=index + 1, total=len(ordered)): shard for index, shard in enumerate(ordered)}


def _write_at(handle: int, data: memoryview, offset: int) -> None:
    while data:  # one call to the system takes at most 2 GiB
        written = os.pwrite(handle, data, offset)
        data, offset = data[written:], offset + written


class ShardWriter:
    """Writes the tensors of a folder, piece by piece; at the end of a block that ends well, their index.

    Args:
        folder: An existing folder.
        specs: Every tensor with its shape and the type that is written.
        max_shard_bytes: As in `plan_shards`.

    Raises:
        OSError: A file exists, or cannot be written.
    """

    def __init__(self, folder: Path, specs: dict[str, TensorSpec], max_shard_bytes: int) -> None:
        """Creates every file at its full size, with its header."""
        self.folder, self.specs = folder, specs
        self.plan = plan_shards(specs, max_shard_bytes)
        self._handles: list[int] = []
        self._place: dict[str, tuple[int, int]] = {}
        self._written: dict[str, list[tuple[int, int]]] = {name: [] for name in specs}
        try:
            for file_name, shard in self.plan.items():
                self._create(folder / file_name, shard)
        except OSError:
            self._close()
            raise

    def _create(self, path: Path, shard: dict[str, TensorSpec]) -> None:
        header, offsets = make_header(shard)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, READABLE)
        self._handles.append(handle)
        os.fchmod(handle, READABLE)
        os.ftruncate(handle, len(header) + sum(spec.num_bytes for spec in shard.values()))
        _write_at(handle, memoryview(header), 0)
        self._place |= {name: (handle, offset) for name, offset in offsets.items()}

    def write(self, name: str, piece: Tensor, start: int = 0) -> None:
        """Writes a piece of a tensor, rounded to the type of the file.

        Args:
            name: The tensor.
            piece: Its elements from `start` on, in any shape.
            start: Where in the flattened tensor the piece begins, in elements.

        Raises:
            OSError: The disk is full, or cannot be written.
        """
        spec = self.specs[name]
        end = start + piece.numel()
        assert start >= 0 and end <= spec.num_elements, f"{name}: elements {start} to {end} of {spec.num_elements}"
        flat = piece.detach().to(device="cpu", dtype=spec.dtype).contiguous().flatten()
        handle, offset = self._place[name]
        _write_at(handle, bytes_of(flat), offset + start * spec.dtype.itemsize)
        if piece.numel():
            self._written[name].append((start, end))

    def _finish(self) -> None:
        for name, spec in self.specs.items():
            ends = [0, *(end for _, end in sorted(self._written[name]))]
            starts = [*(start for start, _ in sorted(self._written[name])), spec.num_elements]
            assert starts == ends, f"{name}: not every element was written once"
        for handle in self._handles:
            os.fsync(handle)
        if len(self.plan) > 1:
            weight_map = {name: file_name for file_name, shard in self.plan.items() for name in shard}
            total = sum(spec.num_bytes for spec in self.specs.values())
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            (self.folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
            (self.folder / INDEX_FILE).chmod(READABLE)

    def _close(self) -> None:
        while self._handles:
            os.close(self._handles.pop())

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._finish()
        finally:
            self._close()
