"""Methods against the first one: differences over paired seeds and items, corrected for how many there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Solved = NDArray[np.float64]  # (seeds, items), 1 where solved


@dataclass(frozen=True)
class Compared:
    """A difference of solve rates, second less first, with its interval and two-sided p, corrected where it was."""

    mean: float
    low: float
    high: float
    p: float


def bootstrap(first: Solved, second: Solved, resamples: int, level: float) -> Compared:
    """Of runs that share seeds and items: both are drawn with replacement, and an item's runs stay together.

    Seeds stand for what training draws, items for what is asked; intervals over items alone would leave the first out.
    p is twice the smaller share of resampled means on either side of 0, at least 2 / resamples.
    """
    differences = second - first
    num_seeds, num_items = differences.shape
    generator = np.random.default_rng(0)
    means = np.empty(resamples)
    for number in range(resamples):
        rows = differences[generator.integers(num_seeds, size=num_seeds)].mean(0)
        means[number] = rows[generator.integers(num_items, size=num_items)].mean()
    below = (1 - level) / 2
    low, high = np.quantile(means, [below, 1 - below])
    share = min((means <= 0).mean(), (means >= 0).mean())
    p = min(1.0, 2 * max(float(share), 1 / resamples))
    return Compared(float(differences.mean()), float(low), float(high), p)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down correction: the k-th smallest of m times m - k + 1, never below one before it, at most 1."""
    corrected: dict[str, float] = {}
    largest = 0.0
    for place, name in enumerate(sorted(p_values, key=lambda each: p_values[each])):
        largest = max(largest, min(1.0, p_values[name] * (len(p_values) - place)))
        corrected[name] = largest
    return {name: corrected[name] for name in p_values}


def solved_of(strings: Sequence[str]) -> Solved:
    """Runs of one method, `1` and `0` by item, as an array."""
    return np.array([[float(each) for each in string] for string in strings])
