"""What travels from data to training: documents, their noise, and micro-batches of both.

What has a level of its own is a span: a document, or each of its blocks, counted from where it begins. Rows are cut
into spans before anything is masked or chosen, so that one rule holds for both.

Shapes: B documents, L tokens of the longest one; N spans, document after document, S tokens of each. N = B and S = L
where a document has one level; else each has ceil(L / S) spans, of which the last ones may lie on padding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from lift_ds.method.components import Component
from lift_ds.ranks.moving import Movable


@dataclass(frozen=True)
class Tokens:
    """One tokenised sample.

    Args:
        ids: int64 (length,) token ids.
        response_mask: bool (length,), true on tokens that are learned.
        filler_mask: bool (length,), true on the end tokens that only fill up a response; a subset of `response_mask`.
    """

    ids: np.ndarray
    response_mask: np.ndarray
    filler_mask: np.ndarray


@dataclass(frozen=True)
class Document(Tokens):
    """A tokenised row: its number in the manifest, the pass over the data, and file and line for messages.

    Where a memory of difficulties is kept, it gives `difficulty`, float32 (length,), expected -log p of the tokens that
    are chosen from, and says which documents are scored exactly nevertheless.
    """

    sample_id: int
    epoch: int
    where: str
    difficulty: np.ndarray | None = None
    is_scored: bool = True


@dataclass(frozen=True)
class Noise:
    """The random numbers of one document: level, extra level, component, and uniforms (2, length) for mask and ties.

    `count_uniform` rounds how many tokens LIFT keeps. `is_refreshed` says whether the document is scored exactly where
    others are scored from the difficulty buffers. Where each block of `span_length` tokens has a level, there is one
    level, extra level, component and `count_uniform` for each: arrays (ceil(length / span_length),).
    """

    t: float | np.ndarray
    rho: float | np.ndarray
    component: int | np.ndarray
    uniforms: np.ndarray
    count_uniform: float | np.ndarray = 0.5
    is_refreshed: bool = True
    span_length: int | None = None

    def per_token(self, values: Any) -> np.ndarray:
        """What each token (length,) has of its span's."""
        length = self.uniforms.shape[1]
        return np.repeat(np.atleast_1d(values), self.span_length or length)[:length]


@dataclass(frozen=True)
class MicroBatch(Movable):
    """Tensors of one forward, and what the host must know of them without asking a device. Padding is false in masks.

    Args:
        clean_ids: int64 (B, L).
        attention_mask: bool (B, L), false on padding.
        response_mask: bool (B, L).
        filler_mask: bool (B, L).
        mask_uniform: float32 (B, L).
        tie_uniform: float32 (B, L).
        t: float32 (N,), levels.
        rho: float32 (N,), extra levels of the superset; 0 for vanilla SFT.
        count_uniform: float32 (N,), uniforms that round how many tokens are kept.
        component: int64 (N,) of `method.components.Component`.
        lengths: Tokens of each document, B of them.
        sample_ids: The documents' numbers, B of them; -1 for a stand-in that only keeps the ranks together.
        slots: Where each document stands in the step, B pairs: its slot, and its place in the slot's pack.
        is_refreshed: bool (B,), documents that are scored exactly, whatever `objective.scoring` says.
        difficulty: float32 (B, L), expected -log p of the superset's tokens from the buffers, where they are used.
        span_length: S where each block has a level; `None` where each document has one.
    """

    clean_ids: Tensor
    attention_mask: Tensor
    response_mask: Tensor
    filler_mask: Tensor
    mask_uniform: Tensor
    tie_uniform: Tensor
    t: Tensor
    rho: Tensor
    count_uniform: Tensor
    component: Tensor
    lengths: list[int]
    sample_ids: list[int]
    slots: list[tuple[int, int]]
    is_refreshed: Tensor
    difficulty: Tensor | None = None
    span_length: int | None = None

    def spans(self, values: Tensor) -> Tensor:
        """Values (B, L) by span: (N, S), false or 0 where a span is longer than what is left of L."""
        if self.span_length is None:
            return values
        return F.pad(values, (0, -values.shape[1] % self.span_length)).view(-1, self.span_length)

    def of_spans(self, values: Tensor) -> Tensor:
        """What `spans` made (N, S) of values (B, L) by document again."""
        return values.reshape(len(self.lengths), -1)[:, : self.clean_ids.shape[1]]

    def by_document(self, values: Tensor) -> Tensor:
        """Values (N,) of spans, a row a document: (B, N / B)."""
        return values.view(len(self.lengths), -1)

    def per_token(self, values: Tensor) -> Tensor:
        """What each token has of its span's values (N,): (B, L)."""
        if self.span_length is None:
            return values[:, None].expand(self.clean_ids.shape)
        return self.of_spans(values[:, None].expand(-1, self.span_length))

    def span_at(self, document: Tensor, column: Tensor) -> Tensor:
        """Spans int64 (R,) of tokens, by their rows and columns (R,) in (B, L)."""
        if self.span_length is None:
            return document
        return document * (len(self.t) // len(self.lengths)) + column // self.span_length

    @property
    def is_padded(self) -> bool:
        """Whether any position is padding."""
        return min(self.lengths) < self.clean_ids.shape[1]

    @property
    def visible(self) -> Tensor | None:
        """The attention mask, `None` where nothing is padded: kernels are faster without one."""
        return self.attention_mask if self.is_padded else None


def collate(
    documents: list[Document], noises: list[Noise], pad_token_id: int, slots: list[tuple[int, int]] | None = None
) -> MicroBatch:
    """Pads documents on the right to the longest one; no token attends to padding, and spans on it have level 1."""
    shape = (len(documents), max(len(document.ids) for document in documents))
    clean_ids = np.full(shape, pad_token_id, dtype=np.int64)
    lengths = [len(document.ids) for document in documents]
    attention_mask = np.arange(shape[1]) < np.array(lengths)[:, None]
    masks = np.zeros((2, *shape), dtype=bool)
    uniforms, difficulty = np.ones((2, *shape), dtype=np.float32), np.zeros(shape, dtype=np.float32)
    span_length = noises[0].span_length
    num_spans = -(-shape[1] // span_length) if span_length else 1

    def of_spans(name: str, on_padding: float, kind: torch.dtype) -> Tensor:
        values = np.full((len(noises), num_spans), on_padding)
        for row, noise in enumerate(noises):
            of_document = np.atleast_1d(getattr(noise, name))
            values[row, : len(of_document)] = of_document
        return torch.from_numpy(values.flatten()).to(kind)

    for row, (document, noise) in enumerate(zip(documents, noises, strict=True)):
        length = len(document.ids)
        clean_ids[row, :length] = document.ids
        masks[0, row, :length] = document.response_mask
        masks[1, row, :length] = document.filler_mask
        uniforms[:, row, :length] = noise.uniforms
        if document.difficulty is not None:
            difficulty[row, :length] = document.difficulty
    return MicroBatch(
        clean_ids=torch.from_numpy(clean_ids),
        attention_mask=torch.from_numpy(attention_mask),
        response_mask=torch.from_numpy(masks[0]),
        filler_mask=torch.from_numpy(masks[1]),
        mask_uniform=torch.from_numpy(uniforms[0]),
        tie_uniform=torch.from_numpy(uniforms[1]),
        t=of_spans("t", 1.0, torch.float32),
        rho=of_spans("rho", 0.0, torch.float32),
        count_uniform=of_spans("count_uniform", 0.0, torch.float32),
        component=of_spans("component", int(Component.RANDOM), torch.int64),
        lengths=lengths,
        sample_ids=[document.sample_id for document in documents],
        slots=slots or [(row, 0) for row in range(len(documents))],
        is_refreshed=torch.tensor(
            [noise.is_refreshed and document.is_scored for document, noise in zip(documents, noises, strict=True)]
        ),
        difficulty=torch.from_numpy(difficulty) if documents[0].difficulty is not None else None,
        span_length=span_length,
    )


def stand_in(pad_token_id: int, has_difficulty: bool = False) -> tuple[Document, Noise]:
    """One token and nothing to learn: a rank that is short of documents runs it at zero weight, to stay in step."""
    nothing, uniforms = np.zeros(1, dtype=bool), np.ones((2, 1), dtype=np.float32)
    document = Document(
        np.array([pad_token_id]),
        nothing,
        nothing,
        sample_id=-1,
        epoch=0,
        where="stand-in",
        difficulty=np.zeros(1, dtype=np.float32) if has_difficulty else None,
    )
    return document, Noise(t=1.0, rho=0.0, component=0, uniforms=uniforms)
