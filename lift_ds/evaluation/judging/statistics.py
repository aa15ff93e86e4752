"""Statistics of right and wrong answers: pass@k, intervals of a share, two models on the same items."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

NORMAL_95 = 1.959963984540054


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Probability that at least one of k samples is right, without bias.

        pass@k = 1 - C(n - c, k) / C(n, k) = 1 - prod_{i = n-c+1..n} (1 - k / i)

    the share of the k-subsets of the n samples that hold one of the c right ones.

    Source: Chen et al., arXiv 2107.03374, equation 1.

    Raises:
        ValueError: k or c is out of range.
    """
    if not 1 <= k <= num_samples:
        raise ValueError(f"pass@{k} of {num_samples} samples: k must be between 1 and the number of samples.")
    if not 0 <= num_correct <= num_samples:
        raise ValueError(f"{num_correct} right ones of {num_samples} samples: at least 0, at most all.")
    return 1.0 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


def wilson_interval(num_correct: int, num_items: int, z: float = NORMAL_95) -> tuple[float, float]:
    """Wilson's score interval of a share of n independent items; z is a quantile of the normal distribution.

        (p + z^2 / 2n  -+  z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)

    Source: Wilson 1927.

    Raises:
        ValueError: There are no items, or more right ones than items.
    """
    if not 0 <= num_correct <= num_items or num_items < 1:
        raise ValueError(f"{num_correct} of {num_items}: an interval needs items, and at most all of them right.")
    share = num_correct / num_items
    middle = share + z * z / (2 * num_items)
    half = z * math.sqrt(share * (1 - share) / num_items + z * z / (4 * num_items**2))
    scale = 1 + z * z / num_items
    low = 0.0 if num_correct == 0 else (middle - half) / scale  # exactly, without the rounding of a difference
    return low, 1.0 if num_correct == num_items else (middle + half) / scale


def mcnemar(num_only_first: int, num_only_second: int) -> float:
    """McNemar's exact two-sided p-value for two models on the same items.

        p = min(1, 2 sum_{i = 0..min(b, c)} C(b + c, i) / 2^(b + c))

    Under the hypothesis that both are equally good, each item that exactly one of them solves is a fair coin: b of them
    only the first solves, c only the second.

    Raises:
        ValueError: A count is negative.
    """
    if min(num_only_first, num_only_second) < 0:
        raise ValueError(f"counts {num_only_first} and {num_only_second}: neither may be negative.")
    num_differing = num_only_first + num_only_second
    tail = sum(math.comb(num_differing, i) for i in range(min(num_only_first, num_only_second) + 1))
    return min(1.0, 2 * tail / 2**num_differing)  # whole numbers until the division: no overflow


@dataclass(frozen=True)
class PairedDifference:
    """Mean of (second - first) over items, and its interval."""

    mean: float
    low: float
    high: float


def paired_bootstrap(
    first: Sequence[float],
    second: Sequence[float],
    seed: int,
    num_resamples: int = 10_000,
    level: float = 0.95,
) -> PairedDifference:
    """Percentile interval of the mean difference between two models on the same items.

    Items are drawn with replacement, both models' scores of an item together, so what makes an item hard cancels out.
    `level` is the share of the resampled means that the interval holds, in (0, 1).

    Raises:
        ValueError: There are no items, not equally many, or an argument is out of range.
    """
    if len(first) != len(second) or not first:
        raise ValueError(f"{len(first)} and {len(second)} scores: the same items are needed, at least one.")
    if num_resamples < 1 or not 0 < level < 1:
        raise ValueError(f"num_resamples={num_resamples}, level={level}: at least 1, and between 0 and 1.")
    differences = [b - a for a, b in zip(first, second, strict=True)]
    chance = random.Random(f"paired_bootstrap/{seed}")
    size = len(differences)
    means = sorted(sum(chance.choices(differences, k=size)) / size for _ in range(num_resamples))
    below = (1 - level) / 2
    low, high = (means[min(num_resamples - 1, int(share * num_resamples))] for share in (below, 1 - below))
    return PairedDifference(sum(differences) / size, low, high)
