"""Likelihoods of continuations, the masks behind them, and whether greedy decoding gives them.

    log p(y | x) >= E over l ~ U{1 .. L}, S uniform among the sets of l places of y, of

        (L / l)  sum over i in S of  log p(y_i | x, y with S masked)

Each of n masks takes its l from its own n-th part of (0, L], so that all levels are covered evenly (stratified), and
its places at random. Where y has no more than n masks in all (2^L - 1), each is computed once, weighted by its
probability: then the bound is exact; with L = 1 it is log p itself.

Source: LLaDA (arXiv 2502.09992), eq. 6 and algorithm 3. Differs: levels are stratified over all masks of a continuation
instead of a batch, short continuations are enumerated, and the standard error is given.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, chain

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812

from lift_ds.evaluation.asking.answering import Answerer
from lift_ds.models.head import encode_blocks, masked_gold_logprob
from lift_ds.rng import Stream, keyed_generator
from lift_ds.sampling.block_rule import own_block_size
from lift_ds.sampling.choose import predict
from lift_ds.sampling.reverse import pad
from lift_ds.sampling.settings import SamplingSettings

from .batches import Bar, Batches

GREEDY = SamplingSettings(gen_length=1, block_length=1, steps=1)
MAX_GREEDY_TOKENS = 1024  # of one forward: all of their logits are held at once


@dataclass(frozen=True)
class Masks:
    """The masks of one continuation of L tokens, bool (n, L), at least one token in each row, or all that there are.

    The weights, float64 (n,), make the sum of the rows' log p the bound.
    """

    masked: np.ndarray
    weights: np.ndarray
    is_exact: bool


@dataclass(frozen=True)
class Estimate:
    """A lower bound of log p, in nats, estimated, with its standard error, 0 where it is exact.

    Strata of one mask each are compared with their neighbours, which makes the error a little too large rather than too
    small.
    """

    loglikelihood: float
    standard_error: float
    num_masks: int


def num_masks(length: int, limit: int) -> int:
    """How many masks `make_masks` gives."""
    return min(limit, 2**length - 1)


def make_masks(length: int, limit: int, seed: int, key: int) -> Masks:
    """At most `limit`, 2 or more, masks of a continuation of 1 token or more; `key_of` says what the draws are for."""
    if 2**length - 1 <= limit:
        masked = (np.arange(1, 2**length)[:, None] >> np.arange(length)) % 2 == 1
        sizes = masked.sum(1)
        return Masks(masked, 1 / (sizes * np.array([math.comb(length, size) for size in sizes])), True)
    generator = keyed_generator(seed, 0, key, Stream.EVALUATION)
    levels = (np.arange(limit) + generator.random(limit)) / limit
    sizes = 1 + np.floor(levels * length).astype(np.int64).clip(max=length - 1)
    order = generator.random((limit, length)).argsort(1)
    masked = np.zeros((limit, length), dtype=bool)
    np.put_along_axis(masked, order, np.arange(length) < sizes[:, None], axis=1)
    return Masks(masked, length / (limit * sizes), False)


def estimate(masks: Masks, logprob: np.ndarray) -> Estimate:
    """What the model's answers to the masks say: float64 (n,), the sum of log p(gold) over each mask's places."""
    terms = masks.weights * logprob
    variance = 0.0
    if not masks.is_exact:
        even = len(terms) // 2 * 2
        variance = float(np.square(terms[0:even:2] - terms[1:even:2]).sum())
        if even < len(terms):
            variance += float((terms[-1] - terms[-2]) ** 2) / 2
    return Estimate(float(terms.sum()), math.sqrt(variance), len(terms))


def key_of(ids: tuple[int, ...]) -> int:
    """A key of `make_masks` from what is asked: the same on every rank, in every batch and in every order."""
    digest = hashlib.blake2b(np.array(ids, dtype=np.int64).tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


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

    Batches, of `batch_size` rows, are made of all pairs before they are dealt to the ranks: results do not depend on
    how many there are. A continuation has at most `num_masks` masks, drawn by `seed`.
    """

    answerer: Answerer
    batches: Batches
    batch_size: int
    num_masks: int
    seed: int

    def estimates(self, pairs: Sequence[Pair], bar: Bar) -> list[Estimate]:
        """Bounds of log p(target | context), in the order of the pairs; `bar` shows the forwards."""
        # longest first: a batch has rows of about one length, and memory runs out at once or never
        order = sorted(range(len(pairs)), key=lambda index: (-len(pairs[index].ids), index))
        counts = [num_masks(len(pairs[index].target), self.num_masks) for index in order]
        starts = [0, *accumulate(counts)]
        owners = np.repeat(np.arange(len(order)), counts)

        def rows(number: int) -> list[tuple[Pair, int]]:
            rows = range(len(owners))[number * self.batch_size : (number + 1) * self.batch_size]
            return [(pairs[order[owners[row]]], row - starts[owners[row]]) for row in rows]

        made = self.batches.run(
            -(-len(owners) // self.batch_size),
            lambda number: ("masks", self.num_masks, self.seed, [(pair.key, index) for pair, index in rows(number)]),
            lambda number: self._forward(rows(number)),
            bar,
        )
        logprob = np.array(list(chain(*made)))
        found_of = {
            index: estimate(pairs[index].masks(self.num_masks, self.seed), logprob[starts[rank] : starts[rank + 1]])
            for rank, index in enumerate(order)
        }
        return [found_of[index] for index in range(len(pairs))]

    def _forward(self, rows: Sequence[tuple[Pair, int]]) -> list[float]:
        """Sums of log p over the masked places of each row: a pair, and the number of its mask."""
        model = self.answerer.model
        plans = {pair: pair.masks(self.num_masks, self.seed) for pair in dict.fromkeys(pair for pair, _ in rows)}
        clean_ids, attention_mask = pad([pair.ids for pair, _ in rows], int(model.config.pad_token_id), "right")
        masked = torch.zeros_like(attention_mask)
        for row, (pair, number) in enumerate(rows):
            masked[row, len(pair.context) : len(pair.ids)] = torch.from_numpy(plans[pair].masked[number])
        owner = masked.nonzero()[:, 0]
        clean_ids, masked, attention_mask = (tensor.to(model.device) for tensor in (clean_ids, masked, attention_mask))
        noised_ids = clean_ids.masked_fill(masked, model.config.mask_token_id)
        logprob = masked_gold_logprob(model, noised_ids, masked, clean_ids, attention_mask)
        sums = torch.zeros(len(rows), dtype=torch.float64).index_add(0, owner, logprob.double().cpu())
        return [float(value) for value in sums]

    def are_greedy(self, pairs: Sequence[Pair], bar: Bar) -> list[bool]:
        """Whether the continuation is what greedy low-confidence decoding gives, one token a step in one block."""
        batches = greedy_batches(pairs, self.batch_size)
        made = self.batches.run(
            len(batches),
            lambda number: ("greedy", [pairs[index].key for index in batches[number]]),
            lambda number: self._check_greedy([pairs[index] for index in batches[number]]),
            bar,
        )
        agrees = dict(zip(chain(*batches), chain(*made), strict=True))
        return [agrees[index] for index in range(len(pairs))]

    @torch.no_grad()
    def _check_greedy(self, pairs: Sequence[Pair]) -> list[bool]:
        """Whether decoding agrees with each; a row that has left its continuation is not followed further.

        Where a model has blocks of its own all are decoded at once: each sees what the ones before it must become.
        """
        model, config, device = self.answerer.model, self.answerer.model.config, self.answerer.model.device
        clean_ids, attention_mask = pad([pair.ids for pair in pairs], int(config.pad_token_id), "right")
        own = own_block_size(config)
        size = own or clean_ids.shape[1]
        spare = -clean_ids.shape[1] % size
        clean_ids, attention_mask = F.pad(clean_ids, (0, spare)), F.pad(attention_mask, (0, spare))
        starts = torch.tensor([len(pair.context) for pair in pairs])
        masked = attention_mask & (torch.arange(clean_ids.shape[1]) >= starts[:, None])
        agrees = torch.ones(len(pairs), dtype=torch.bool)
        clean_ids, attention_mask, masked = clean_ids.to(device), attention_mask.to(device), masked.to(device)
        rows = torch.arange(len(pairs), device=device)[:, None]
        firsts = torch.arange(0, clean_ids.shape[1], size, device=device)
        while self.answerer.any_rank(bool(masked.any())):
            asked = masked if bool(masked.any()) else attention_mask  # every rank runs the same forwards
            noised_ids = clean_ids.masked_fill(masked, config.mask_token_id)
            if own is None:
                hidden = model.encode(noised_ids, attention_mask)[asked]
            else:
                hidden = encode_blocks(model, noised_ids, clean_ids, None, attention_mask)[asked]
            logits = model.head(hidden)[None]
            predicted, confidence = predict(logits, GREEDY, int(config.mask_token_id), int(config.eos_token_id))
            confidences = confidence.new_full(asked.shape, -1.0).masked_scatter(asked, confidence)
            surest = firsts + confidences.unflatten(1, (-1, size)).argmax(-1)  # of each block
            guess = torch.zeros_like(clean_ids).masked_scatter(asked, predicted)
            left = (masked[rows, surest] & (guess != clean_ids)[rows, surest]).any(-1)
            masked[rows, surest] = False
            masked[left] = False
            agrees[left.cpu()] = False
        return [bool(agreement) for agreement in agrees]


def greedy_batches(pairs: Sequence[Pair], batch_size: int) -> list[list[int]]:
    """Places of the pairs in batches that have at most so many rows, and masked tokens, longest continuations first."""
    batches: list[list[int]] = []
    num_tokens = 0
    for index in sorted(
        range(len(pairs)), key=lambda index: (-len(pairs[index].target), -len(pairs[index].ids), index)
    ):
        num_tokens += len(pairs[index].target)
        if not batches or len(batches[-1]) == batch_size or num_tokens > MAX_GREEDY_TOKENS:
            batches.append([])
            num_tokens = len(pairs[index].target)
        batches[-1].append(index)
    return batches
