"""Dropout whose masks belong to documents: seeded by (seed, step, document, module), never by when they are drawn.

Another micro-batch, number of ranks, pack or padding, a resumed run, and the recomputation of a checkpointed layer all
give a document the same masks.

Shapes: B documents, L tokens of the longest one, T tokens of all, D features.
"""

from __future__ import annotations

from dataclasses import dataclass, field

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
    num_copies: int = 1  # how often all of that follows itself: the noised and the clean tokens of block diffusion
    table: Tensor = field(init=False)  # int64 (B, 1 + modules) on the CPU: the same lengths, then the seeds

    def __post_init__(self) -> None:
        rows = [[length, *seeds] for length, seeds in zip(self.lengths, self.seeds, strict=True)]
        object.__setattr__(self, "table", torch.tensor(rows))


@torch.library.custom_op("lift_ds::kept_features", mutates_args=())
def kept_features(
    like: Tensor, table: Tensor, column: Tensor, share: float, is_packed: bool, num_copies: int
) -> Tensor:
    """Which features stay, drawn document by document; an operation of its own, which a compiled layer calls whole.

    Args:
        like: (B, L, D), or (1, T, D) where packed; L or T times as long where there are copies.
        table: int64 (B, 1 + modules) on the CPU; each document's length and seeds.
        column: int64 scalar on the CPU, the seed's column; a tensor, as a number would have each module compiled anew.
        share: Probability to stay.
        is_packed: Whether the documents stand one after the other in one row.
        num_copies: How often all documents follow each other.

    Returns:
        bool, of `like`'s shape; false on padding.
    """
    kept = torch.zeros_like(like, dtype=torch.bool)
    lengths, seeds = table[:, 0].tolist(), table[:, int(column)].tolist()
    places = []
    for copy in kept.chunk(num_copies, dim=1):
        rows = copy[0].split(lengths) if is_packed else copy
        places.append([row[:length] for row, length in zip(rows, lengths, strict=True)])
    generator = torch.Generator(like.device)
    for seed, *parts in zip(seeds, *places, strict=True):
        generator.manual_seed(seed)
        for part in parts:  # the first as it would be without the others
            part.bernoulli_(share, generator=generator)
    return kept


@kept_features.register_fake
def _(like: Tensor, table: Tensor, column: Tensor, share: float, is_packed: bool, num_copies: int) -> Tensor:
    return torch.empty_like(like, dtype=torch.bool)


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
        self.column = torch.tensor(1 + index, device="cpu")
        self.rows: DocumentRows | None = None

    def forward(self, hidden: Tensor) -> Tensor:
        """The features that are kept, scaled."""
        if not self.training:
            return hidden
        assert self.rows is not None, "dropout is seeded by document: set `rows` before a training forward"
        rows = self.rows
        kept = kept_features(hidden.detach(), rows.table, self.column, 1 - self.p, rows.is_packed, rows.num_copies)
        return torch.where(kept, hidden, 0) / (1 - self.p)  # in this order bf16 rounds once
