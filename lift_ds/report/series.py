"""Columns of a run's steps, and many steps as few points, each a mean with the least and the most of its steps."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
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


def column(records: Records, *path: str) -> np.ndarray:
    """Float64 (N,): a number of each record, by its key and those below it; NaN where it is not there."""
    values: Sequence[Any] = records
    for key in path:
        values = [value.get(key) if isinstance(value, dict) else None for value in values]
    return _numbers(values, ())


def rows_of(records: Records, key: str, size: int) -> np.ndarray:
    """Float64 (N, size): a list of numbers of each record; NaN where it is not there, or not of this size."""
    lists = [record.get(key) for record in records]
    fitting = [each if isinstance(each, list) and len(each) == size else [None] * size for each in lists]
    return _numbers(fitting, (size,))


def _numbers(values: Sequence[Any], shape: tuple[int, ...]) -> np.ndarray:
    """Values, each a number or a list of them by its shape, as an array; NaN for what is no number."""
    with suppress(TypeError, ValueError):  # numpy reads None as NaN
        made = np.array(values, dtype=float)
        if made.shape == (len(values), *shape):
            return made
    slow = [
        value if isinstance(value, int | float) else np.nan for each in values for value in (each if shape else [each])
    ]
    return np.array(slow, dtype=float).reshape(len(values), *shape)


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
