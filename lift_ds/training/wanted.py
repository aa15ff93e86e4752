"""Documents of which tokens are chosen by how hard they are, and what is asked of the memory for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lift_ds.data.batch import Document, Noise
from lift_ds.method.components import Component
from lift_ds.method.memory import doubt
from lift_ds.method.selection import num_kept


@dataclass(frozen=True)
class Wanted:
    """A document of which tokens are chosen by how hard they are.

    Args:
        superset: int64 (R,), positions in the document of what is chosen from.
        places: int64 (R,), their places in the row.
        levels: float32 (R,), the levels at which they are masked.
        sizes: int64 (spans,), how many of them are of each of the document's spans.
        size: Response tokens of the row.
    """

    document: Document
    noise: Noise
    superset: np.ndarray
    places: np.ndarray
    levels: np.ndarray
    sizes: np.ndarray
    size: int


def want(document: Document, noise: Noise) -> Wanted | None:
    """The document, unless all its tokens are chosen at random."""
    by_scores = np.atleast_1d(noise.component) != Component.RANDOM
    if not by_scores.any():
        return None
    learnable = document.response_mask & ~document.filler_mask
    below = noise.per_token(np.float32(noise.t) + np.float32(noise.rho))
    masked = learnable & noise.per_token(by_scores) & (noise.uniforms[0] < below)
    superset = masked.nonzero()[0]
    levels = np.minimum(np.asarray(noise.t) + np.asarray(noise.rho), 1.0)
    return Wanted(
        document,
        noise,
        superset,
        (learnable.cumsum() - 1)[superset],
        noise.per_token(levels)[superset].astype(np.float32),
        np.bincount(superset // (noise.span_length or len(masked)), minlength=len(by_scores)),
        int(learnable.sum()),
    )


def nums_kept(wanted: Sequence[Wanted]) -> list[list[int]]:
    """How many tokens of each span of each document are chosen."""

    def joined(values: list[np.ndarray | float]) -> torch.Tensor:
        return torch.from_numpy(np.concatenate([np.zeros(0), *map(np.atleast_1d, values)])).float()

    sizes = [each.sizes for each in wanted]
    t, rho = joined([each.noise.t for each in wanted]), joined([each.noise.rho for each in wanted])
    kept = num_kept(joined([*sizes]).long(), t, rho, v=joined([each.noise.count_uniform for each in wanted]))
    return [each.tolist() for each in kept.split([len(each) for each in sizes])]


def doubts(wanted: Sequence[Wanted], counts: Sequence[np.ndarray]) -> list[float]:
    """How unsure the memory is of each document, which `counts`, int64 (R,), says of its superset: all spans' sum."""
    found = []
    for each, kept, seen in zip(wanted, nums_kept(wanted), counts, strict=True):
        ends = np.cumsum(each.sizes)
        of_spans = zip(each.sizes.tolist(), kept, np.split(seen, ends[:-1]), strict=True)
        found.append(sum((doubt(*of_span) for of_span in of_spans), start=0.0))
    return found
