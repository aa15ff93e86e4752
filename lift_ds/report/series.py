"""Columns of a run's steps, and many steps as few points, each a mean with the least and the most of its steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

MOST_POINTS = 300
Records = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Points:
    """A curve; all arrays (P,), P at most `MOST_POINTS`.

    Args:
        steps: Of each point the last step that it stands for.
        mean: Of the values that are known.
        low: The least of them.
        high: The most of them.
        most_each: How many values a point stands for, at most.
    """

    steps: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    most_each: int


def column(records: Records, *path: str | int) -> np.ndarray:
    """Float64 (N,): a number of each record, by its key and what lies below it; NaN where it is not there."""
    values = np.full(len(records), np.nan)
    for index, record in enumerate(records):
        value: Any = record
        try:
            for part in path:
                value = value[part]
            values[index] = np.nan if value is None else value
        except (KeyError, IndexError, TypeError, ValueError):
            continue
    return values


def points(steps: np.ndarray, values: np.ndarray) -> Points:
    """The values that are known, float64 (N,), each at its step (N,), as a curve."""
    known = np.isfinite(values)
    steps, values = steps[known], values[known]
    parts = np.array_split(np.arange(len(values)), min(max(len(values), 1), MOST_POINTS))
    if not len(values):
        empty = np.zeros(0)
        return Points(empty, empty, empty, empty, 0)
    starts = np.array([part[0] for part in parts])
    sizes = np.array([len(part) for part in parts])
    mean = np.add.reduceat(values, starts) / sizes
    low, high = np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)
    return Points(steps[starts + sizes - 1], mean, low, high, int(sizes.max()))


def banded(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Means (N,) of the values (N, T) that are known, by weights (N, T); NaN where none is, or all weigh nothing."""
    known = np.isfinite(values)
    weights = np.where(known, np.nan_to_num(weights), 0.0)
    total = weights.sum(1)
    summed = (np.where(known, values, 0.0) * weights).sum(1)
    return np.divide(summed, total, out=np.full(len(total), np.nan), where=total > 0)


def mean_of(values: np.ndarray) -> float:
    """Mean of the values that are known; NaN where none is."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")
