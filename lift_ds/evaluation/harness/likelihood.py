"""Likelihoods of continuations, and whether greedy decoding gives them.

Shapes: B rows of a batch, T their tokens, R masked tokens of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, chain

import numpy as np
import torch
from torch import Tensor

from lift_ds.evaluation.asking.answering import Answerer
from lift_ds.models.head import masked_gold_logprob
from lift_ds.sampling.choose import predict
from lift_ds.sampling.settings import SamplingSettings

from .batches import Bar, Batches
from .masks import Estimate, Masks, estimate, key_of, make_masks, num_masks

GREEDY = SamplingSettings(gen_length=1, block_length=1, steps=1)
MAX_GREEDY_TOKENS = 1024  # of one forward: all of their logits are held at once


@dataclass(frozen=True)
class Pair:
    """Token ids of a context, which may be empty, and of its continuation, which is not."""

    context: tuple[int, ...]
    target: tuple[int, ...]

    @property
    def ids(self) -> tuple[int, ...]:
        """All of them."""
        return self.context + self.target

    @cached_property
    def key(self) -> tuple[int, int]:
        """Names it in few numbers."""
        return key_of(self.ids), len(self.context)

    def masks(self, limit: int, seed: int) -> Masks:
        """Continuations of one context that are equally long get the same masks, so that what they share cancels."""
        return make_masks(len(self.target), limit, seed, key_of(self.context or self.target))


@dataclass(frozen=True)
class Likelihood:
    """Scores pairs; every rank gets the same list, does its part of the work, and has all results.

    Batches are made of all pairs, longest first, before they are dealt to the ranks: results do not depend on how many
    there are.

    Args:
        answerer: The model.
        batches: What computes them on the ranks.
        batch_size: Rows of one forward.
        num_masks: Most masks of a continuation.
        seed: Seed of the masks.
    """

    answerer: Answerer
    batches: Batches
    batch_size: int
    num_masks: int
    seed: int

    def estimates(self, pairs: Sequence[Pair], bar: Bar) -> list[Estimate]:
        """Bounds of log p(target | context), in the order of the pairs; `bar` shows the forwards."""
        order = longest_first(pairs)
        counts = [num_masks(len(pairs[place].target), self.num_masks) for place in order]
        starts = [0, *accumulate(counts)]
        owners = np.repeat(np.arange(len(order)), counts)

        def rows(number: int) -> list[tuple[Pair, int]]:
            found = range(len(owners))[number * self.batch_size : (number + 1) * self.batch_size]
            return [(pairs[order[owners[row]]], row - starts[owners[row]]) for row in found]

        made = self.batches.run(
            -(-len(owners) // self.batch_size),
            lambda number: ("masks", self.num_masks, self.seed, [(pair.key, index) for pair, index in rows(number)]),
            lambda number: self.forward(*self.with_places(rows(number))),
            bar,
        )
        logprob = np.array([value for values in made for value in values])
        found_of: dict[int, Estimate] = {}
        for rank, place in enumerate(order):
            values = logprob[starts[rank] : starts[rank + 1]]
            found_of[place] = estimate(pairs[place].masks(self.num_masks, self.seed), values)
        return [found_of[place] for place in range(len(pairs))]

    def with_places(self, rows: Sequence[tuple[Pair, int]]) -> tuple[list[Pair], list[np.ndarray]]:
        """The pairs of (pair, number of its mask), and the places that each masks in its continuation."""
        plans = {pair: pair.masks(self.num_masks, self.seed) for pair in dict.fromkeys(pair for pair, _ in rows)}
        return [pair for pair, _ in rows], [plans[pair].places[index] for pair, index in rows]

    def forward(self, pairs: Sequence[Pair], places: Sequence[np.ndarray]) -> list[float]:
        """Sums of log p over the masked places of each row."""
        model = self.answerer.model
        clean_ids, attention_mask = pad_right([pair.ids for pair in pairs], int(model.config.pad_token_id))
        masked = torch.zeros_like(attention_mask)
        for row, (pair, chosen) in enumerate(zip(pairs, places, strict=True)):
            masked[row, len(pair.context) : len(pair.ids)] = torch.from_numpy(chosen)
        owner = masked.nonzero()[:, 0]
        clean_ids, masked, attention_mask = (each.to(model.device) for each in (clean_ids, masked, attention_mask))
        noised_ids = clean_ids.masked_fill(masked, model.config.mask_token_id)
        logprob = masked_gold_logprob(model, noised_ids, masked, clean_ids, attention_mask)
        sums = torch.zeros(len(pairs), dtype=torch.float64).index_add(0, owner, logprob.double().cpu())
        return [float(each) for each in sums]

    def are_greedy(self, pairs: Sequence[Pair], bar: Bar) -> list[bool]:
        """Whether the continuation is what greedy low-confidence decoding gives, one token a step in one block."""
        batches = greedy_batches(pairs, self.batch_size)
        made = self.batches.run(
            len(batches),
            lambda number: ("greedy", [pairs[place].key for place in batches[number]]),
            lambda number: self.check_greedy([pairs[place] for place in batches[number]]),
            bar,
        )
        agrees = dict(zip(chain(*batches), chain(*made), strict=True))
        return [agrees[place] for place in range(len(pairs))]

    @torch.no_grad()
    def check_greedy(self, pairs: Sequence[Pair]) -> list[bool]:
        """Whether decoding agrees with each; a row that has left its continuation is not followed further."""
        model, config, device = self.answerer.model, self.answerer.model.config, self.answerer.model.device
        clean_ids, attention_mask = pad_right([pair.ids for pair in pairs], int(config.pad_token_id))
        starts = torch.tensor([len(pair.context) for pair in pairs])
        masked = attention_mask & (torch.arange(clean_ids.shape[1]) >= starts[:, None])
        agrees = torch.ones(len(pairs), dtype=torch.bool)
        clean_ids, attention_mask, masked = clean_ids.to(device), attention_mask.to(device), masked.to(device)
        while self.answerer.any_rank(bool(masked.any())):
            asked = masked if bool(masked.any()) else attention_mask  # every rank runs the same forwards
            hidden = model.encode(clean_ids.masked_fill(masked, config.mask_token_id), attention_mask)[asked]
            logits = model.head(hidden)[None]
            predicted, confidence = predict(logits, GREEDY, int(config.mask_token_id), int(config.eos_token_id))
            surest = confidence.new_full(asked.shape, -1.0).masked_scatter(asked, confidence).argmax(-1)
            guess = torch.zeros_like(clean_ids).masked_scatter(asked, predicted)
            rows = torch.arange(len(pairs), device=device)
            is_right = (guess == clean_ids)[rows, surest]
            left = masked.any(-1) & ~is_right
            masked[rows, surest] = False
            masked[left] = False
            agrees[left.cpu()] = False
        return [bool(each) for each in agrees]


def longest_first(pairs: Sequence[Pair]) -> list[int]:
    """Places of the pairs, so that a batch has rows of about one length and memory runs out at once or never."""
    return sorted(range(len(pairs)), key=lambda place: (-len(pairs[place].ids), place))


def greedy_batches(pairs: Sequence[Pair], batch_size: int) -> list[list[int]]:
    """Places of the pairs in batches that have at most so many rows, and masked tokens, longest continuations first."""
    batches: list[list[int]] = []
    num_tokens = 0
    for place in sorted(
        range(len(pairs)), key=lambda place: (-len(pairs[place].target), -len(pairs[place].ids), place)
    ):
        num_tokens += len(pairs[place].target)
        if not batches or len(batches[-1]) == batch_size or num_tokens > MAX_GREEDY_TOKENS:
            batches.append([])
            num_tokens = len(pairs[place].target)
        batches[-1].append(place)
    return batches


def pad_right(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Rows of ids as int64 (B, T), and bool (B, T), false on padding."""
    lengths = torch.tensor([len(row) for row in rows])
    attention_mask = torch.arange(int(lengths.max())) < lengths[:, None]
    ids = torch.full(attention_mask.shape, pad_id)
    ids[attention_mask] = torch.tensor([token_id for row in rows for token_id in row])
    return ids, attention_mask
