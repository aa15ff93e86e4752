"""State as it is now, in host memory that is used again: what is written of it behind the training."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import torch
from torch import Tensor


class _TensorsOf(pickle.Pickler):
    """The tensors of a tree, wherever pickling would find them; their data is not looked at."""

    def __init__(self, tree: Any) -> None:
        super().__init__(io.BytesIO(), pickle.HIGHEST_PROTOCOL)
        self.found: list[Tensor] = []
        self.dump(tree)

    def persistent_id(self, obj: Any) -> int | None:
        """A tensor's number; other objects are pickled."""
        if not isinstance(obj, Tensor):
            return None
        self.found.append(obj)
        return len(self.found)


class HostCopies:
    """Copies of trees of tensors; what is written of one is, byte for byte, what would be written of the tree.

    Memory is taken as the first copies need it, is pinned where a GPU copies into it, and is used again by the copies
    after each `begin`, so that it is neither asked for nor touched anew.
    """

    def __init__(self) -> None:
        self.buffers: list[Tensor] = []
        self.begin()

    @property
    def num_bytes(self) -> int:
        """Host memory that is held."""
        return sum(each.nbytes for each in self.buffers)

    def begin(self) -> None:
        """Gives up the copies made so far."""
        self.num_used = 0

    def copy(self, tree: Any) -> Any:
        """The tree with its tensors on the host; tensors that share memory share it there."""
        found = _TensorsOf(tree).found  # held meanwhile, so that no other object gets the identity of one
        held: dict[int, Tensor] = {}
        copied = copy.deepcopy(tree, {id(each): self._copy_tensor(each, held) for each in found})
        if any(each.is_cuda for each in found):
            torch.cuda.synchronize()
        return copied

    def _copy_tensor(self, tensor: Tensor, held: dict[int, Tensor]) -> Tensor:
        """The tensor on the host; `held` has the copies of storages by their address."""
        storage = tensor.untyped_storage()
        if storage._cdata not in held:
            source = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage)
            held[storage._cdata] = self._buffer(source)
            held[storage._cdata].copy_(source, non_blocking=True)
        place = (tensor.storage_offset(), tensor.shape, tensor.stride())
        with torch.no_grad():
            copied = torch.empty(0, dtype=tensor.dtype).set_(held[storage._cdata].untyped_storage(), *place)
        if isinstance(tensor, torch.nn.Parameter):
            copied = torch.nn.Parameter(copied, tensor.requires_grad)
        copied.requires_grad_(tensor.requires_grad).__dict__.update(copy.deepcopy(tensor.__dict__))
        return copied

    def _buffer(self, source: Tensor) -> Tensor:
        number, self.num_used = self.num_used, self.num_used + 1
        if number == len(self.buffers) or self.buffers[number].nbytes != source.nbytes:
            self.buffers[number:] = [torch.empty(source.nbytes, dtype=torch.uint8, pin_memory=source.is_cuda)]
        return self.buffers[number]
