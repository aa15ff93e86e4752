"""How unsure a memory is of what the exact scores of a document would choose."""

from __future__ import annotations

import numpy as np


def doubt(expected: np.ndarray, counts: np.ndarray, num_kept: int, is_hard: bool) -> float:
    """About how many tokens are chosen wrongly, beyond what it costs to choose at random.

    Args:
        expected: float32 (R,), expected -log p of the superset.
        counts: int64 (R,), observations behind each.
        num_kept: k, how many are chosen.
        is_hard: Whether the largest are chosen.
    """
    size = len(expected)
    if not 0 < num_kept < size:
        return 0.0
    return float(num_kept * (1 - num_kept / size))
