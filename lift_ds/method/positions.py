"""The true entries of a mask as positions, whose number the host knows beforehand.

`values[mask]` makes the host wait for the device: how large the result is depends on the device's data. The tokens that
a document masks follow from its uniforms and levels, which the host has; so do the numbers of those that are kept.

Shapes: B documents, L tokens, R true entries of a mask (B, L).
"""

from __future__ import annotations

import torch
from torch import Tensor


def positions(mask: Tensor, count: int | None) -> Tensor:
    """Positions int64 (R,) of the true entries in the flattened mask (B, L), ascending.

    Args:
        mask: bool (B, L).
        count: R. Where nobody knows it the device is asked, and the host waits: the one place of a training pass where
            that happens.

    Raises:
        RuntimeError: The mask has another number of true entries. On a GPU it comes from a later call.
    """
    if count is None:
        count = int(mask.sum())
    else:
        torch._assert_async(mask.sum() == count, f"{count} true entries of a mask were announced; it has others")
    return torch.nonzero_static(mask.flatten(), size=count)[:, 0]


def taken(values: Tensor, at: Tensor) -> Tensor:
    """The entries (R, ...) of values (B, L, ...) at positions (R,)."""
    return values.flatten(0, 1).index_select(0, at)


def placed(entries: Tensor, at: Tensor, like: Tensor) -> Tensor:
    """Entries (R,) at positions (R,) of a mask's shape (B, L), 0 elsewhere."""
    return entries.new_zeros(like.numel()).index_copy(0, at, entries).view(like.shape)
