"""Documents of which tokens are chosen by how hard they are, and what is asked of the memory for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lift_ds.data.batch import Document, Noise
from lift_ds.method.components import Component
from lift_ds.method.selection import num_kept


@dataclass(frozen=True)
class Wanted:
    """A document of which tokens are chosen by how hard they are.

    Args:
        superset: int64 (R,), positions in the document of what is chosen from.
        places: int64 (R,), their places in the row.
        size: Response tokens of the row.
    """

    document: Document
    noise: Noise
    superset: np.ndarray
    places: np.ndarray
    size: int


def want(document: Document, noise: Noise) -> Wanted | None:
    """The document, unless its tokens are chosen at random."""
    if noise.component == Component.RANDOM:
        return None
    learnable = document.response_mask & ~document.filler_mask
    below = np.float32(noise.t) + np.float32(noise.rho)
    superset = (learnable & (noise.uniforms[0] < below)).nonzero()[0]
    return Wanted(document, noise, superset, (learnable.cumsum() - 1)[superset], int(learnable.sum()))


def nums_kept(wanted: Sequence[Wanted]) -> list[int]:
    """How many tokens of each document are chosen."""
    sizes = torch.tensor([len(each.superset) for each in wanted])
    t, rho = torch.tensor([each.noise.t for each in wanted]), torch.tensor([each.noise.rho for each in wanted])
    v = torch.tensor([each.noise.count_uniform for each in wanted])
    kept: list[int] = num_kept(sizes, t, rho, v=v).tolist()
    return kept
