"""Dropout whose masks belong to documents: seeded by (seed, step, document, module), never by when they are drawn.

Another micro-batch, number of ranks, pack or padding, a resumed run, and the recomputation of a checkpointed layer all
give a document the same masks.

Shapes: B documents, L tokens of the longest one, T tokens of all, D features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lift_ds.rng import Stream, keyed_generator

LARGEST_SEED = 2**62


@dataclass(frozen=True)
class DocumentRows:
    """The B documents of one forward, and where they stand in it."""

    lengths: list[int]  # tokens of each
    seeds: list[list[int]]  # of each, one per module that draws
    is_packed: bool  # whether they stand one after the other in one row of T tokens, not in a padded row each

    def split(self, hidden: Tensor) -> list[Tensor]:
        """Each document's part of (B, L, D), or of (1, T, D)."""
        if self.is_packed:
            return list(hidden[0].split(self.lengths))
        return [row[:length] for row, length in zip(hidden, self.lengths, strict=True)]


def document_seeds(seed: int, step: int, sample_ids: list[int], num_views: int, num_modules: int) -> list[list[int]]:
    """Seeds of a forward in which all documents follow one another `num_views` times: (num_views * B) lists.

    `num_modules` draw in it; the numbers of the documents are from -1 (stand-ins).
    """
    drawn = [
        keyed_generator(seed, step, sample_id + 1, Stream.DROPOUT).integers(LARGEST_SEED, size=(num_views, num_modules))
        for sample_id in sample_ids
    ]
    return [seeds[view].tolist() for view in range(num_views) for seeds in drawn]


class KeyedDropout(nn.Module):
    """Dropout on (B, L, D) or (1, T, D) while training; rows of padding become 0.

    Args:
        p: Share of the features that become 0; the others are multiplied by 1 / (1 - p).
        index: Number of this module among all that draw.

    Attributes:
        rows: The documents of the next training forward; they must stay until its backward is done.
    """

    def __init__(self, p: float, index: int) -> None:
        super().__init__()
        self.p = p
        self.index = index
        self.rows: DocumentRows | None = None

    def forward(self, hidden: Tensor) -> Tensor:
        """The features that are kept, scaled."""
        if not self.training:
            return hidden
        assert self.rows is not None, "dropout is seeded by document: set `rows` before a training forward"
        kept = torch.zeros_like(hidden)
        generator = torch.Generator(hidden.device)
        for part, seeds in zip(self.rows.split(kept), self.rows.seeds, strict=True):
            part.bernoulli_(1 - self.p, generator=generator.manual_seed(seeds[self.index]))
        return hidden * kept / (1 - self.p)  # in this order bf16 rounds once
