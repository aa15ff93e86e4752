"""Tensors between the host and a device: many in one copy, which the host does not wait for on the way there.

A copy of pageable memory makes the host wait until it has arrived, and each costs a call: what a micro-batch needs goes
over at once, and what it showed comes back at once, once a step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any, Self

import torch
from torch import Tensor


def moved(tensors: list[Tensor], device: torch.device) -> list[Tensor]:
    """The same tensors on `device`, from wherever they are together; those that are there stay as they are.

    Copies to a CUDA device start from pinned memory and are ordered with what runs there afterwards; copies to the CPU
    have arrived.
    """
    if not tensors or tensors[0].device == device:
        return tensors
    flat = joined(tensors)
    if device.type == "cuda":
        flat = flat.pin_memory()
    return parted(flat.to(device, non_blocking=device.type != "cpu"), tensors)


def joined(tensors: list[Tensor]) -> Tensor:
    """All bytes, uint8 (bytes,), the widest types first, so that each tensor begins at a multiple of its own."""
    return torch.cat([each.detach().flatten().view(torch.uint8) for each in _widest_first(tensors)])


def parted(flat: Tensor, like: list[Tensor]) -> list[Tensor]:
    """What `joined` made of tensors like these, in their order, as views of `flat`."""
    parts = flat.split([each.nbytes for each in _widest_first(like)])
    views = {id(each): part.view(each.dtype) for each, part in zip(_widest_first(like), parts, strict=True)}
    return [views[id(each)].view(each.shape) for each in like]


def _widest_first(tensors: list[Tensor]) -> list[Tensor]:
    return sorted(tensors, key=lambda each: -each.element_size())


class Movable:
    """A frozen dataclass whose tensors, and those of its movable parts, go to a device in one copy.

    What else it holds stays on the host.
    """

    def to(self, device: torch.device) -> Self:
        """The same with its tensors on `device`."""
        return self._holding(iter(moved(self._tensors(), device)))

    def _parts(self) -> dict[str, Any]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        return {name: value for name, value in values.items() if isinstance(value, (Tensor, Movable))}

    def _tensors(self) -> list[Tensor]:
        parts = self._parts().values()
        return [each for part in parts for each in (part._tensors() if isinstance(part, Movable) else [part])]

    def _holding(self, tensors: Iterator[Tensor]) -> Self:
        parts = self._parts().items()
        held = {name: part._holding(tensors) if isinstance(part, Movable) else next(tensors) for name, part in parts}
        return replace(self, **held)  # type: ignore[type-var]
