"""The masks behind a likelihood, and the estimate that they give.

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
from dataclasses import dataclass

import numpy as np

from lift_ds.rng import Stream, keyed_generator


@dataclass(frozen=True)
class Masks:
    """The masks of one continuation of L tokens.

    Args:
        masked: bool (n, L), true where masked; at least one in each row.
        weights: float64 (n,), which make the sum of the rows' log p the bound.
        is_exact: Whether these are all masks that there are.
    """

    masked: np.ndarray
    weights: np.ndarray
    is_exact: bool


@dataclass(frozen=True)
class Estimate:
    """A lower bound of log p, in nats.

    Args:
        loglikelihood: The bound, estimated.
        standard_error: Of the estimate; 0 where it is exact. Strata of one mask each are compared with their
            neighbours, which makes it a little too large rather than too small.
        num_masks: Masks computed.
    """

    loglikelihood: float
    standard_error: float
    num_masks: int


def num_masks(length: int, limit: int) -> int:
    """How many masks `make_masks` gives."""
    return min(limit, 2**length - 1)


def make_masks(length: int, limit: int, seed: int, key: int) -> Masks:
    """Masks of a continuation.

    Args:
        length: Its tokens, at least 1.
        limit: Most masks; at least 2.
        seed: Seed of the evaluation.
        key: What the draws are for; see `key_of`.
    """
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
    """What the model's answers to the masks say.

    Args:
        masks: Of `make_masks`.
        logprob: float64 (n,), sum of log p(gold) over each mask's places.
    """
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
