"""Documents of which tokens are chosen by how hard they are, and what is asked of the memory for them."""

from __future__ import annotations

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

    @property
    def num_kept(self) -> int:
        """How many are chosen."""
        t, rho, v = (torch.tensor([each]) for each in (self.noise.t, self.noise.rho, self.noise.count_uniform))
        return int(num_kept(torch.tensor([len(self.superset)]), t, rho, v=v))


def want(document: Document, noise: Noise) -> Wanted | None:
    """The document, unless its tokens are chosen at random."""
    if noise.component == Component.RANDOM:
        return None
    learnable = document.response_mask & ~document.filler_mask
    below = np.float32(noise.t) + np.float32(noise.rho)
    superset = (learnable & (noise.uniforms[0] < below)).nonzero()[0]
    return Wanted(document, noise, superset, (learnable.cumsum() - 1)[superset], int(learnable.sum()))
