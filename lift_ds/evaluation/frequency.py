"""How often a token occurs in the measured responses, and its class: counts between two powers of two.

The one definition for all measures by frequency. It counts what is measured, not what was trained on, so that it is the
same for every method, step and number of ranks; measures of other rows have other classes.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from lift_ds.data.batch import Document


def token_counts(documents: Iterable[Document], num_ids: int = 0) -> Tensor:
    """Occurrences in the responses; fillers are not counted.

    Args:
        documents: All measured rows.
        num_ids: Least length of the result; it reaches the highest id that occurs.

    Returns:
        int64 (V,).
    """
    learned = [document.ids[document.response_mask & ~document.filler_mask] for document in documents]
    joined = np.concatenate(learned) if learned else np.zeros(0, dtype=np.int64)
    return torch.bincount(torch.from_numpy(joined), minlength=num_ids)


def frequency_class(counts: Tensor) -> Tensor:
    """int64 (V,): floor(log2(count)) of each token; -1 where it does not occur."""
    return torch.where(counts > 0, counts.clamp(min=1).double().log2().floor().long(), -1)


def class_label(number: int) -> str:
    """`8-15` for class 3."""
    low, high = 2**number, 2 ** (number + 1) - 1
    return str(low) if low == high else f"{low:,}-{high:,}"
