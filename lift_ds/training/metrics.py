"""Counts of a step that add up over micro-batches and ranks, and the file they end in.

Bins divide the levels (0, 1] into ten equal parts; T below is their number.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

from lift_ds.models.balance import summary
from lift_ds.ranks.shares import Ranks
from lift_ds.storage.appending import append_line

from .timing import PARTS

NUM_TENTHS = 10
COMPONENTS = ("easy", "random", "hard")
BESIDE = ("gather", "own")  # seconds that are not one of the parts: inside of them, and what a rank spent alone
RANK_BITS, PER_SECOND = 2**20, 10**6


NUM_TIMED = len(PARTS) + len(BESIDE)


class StepTotals:
    """Sums and maxima of one step, each as one float64 vector, so that one collective takes them over the ranks."""

    SCALARS = (
        *"loss num_tokens num_skipped num_bad_rows num_in_common num_compared num_by_chance".split(),
        *("num_documents", "num_input_tokens", "num_attention_pairs", "weight_sum", "weight_squares"),
        *(f"{part}_seconds" for part in (*PARTS, *BESIDE)),  # last, see `add_rank`
    )
    BINNED = ("documents", "nll", "kept", "gradient")

    def __init__(self, choices_shape: tuple[int, int] = (0, 0)) -> None:
        zeros = partial(torch.zeros, dtype=torch.float64)
        self.scalars, self.components = zeros(len(self.SCALARS)), zeros(3, len(COMPONENTS))
        self.binned, self.maxima = zeros(len(self.BINNED), NUM_TENTHS), zeros(NUM_TENTHS + 1 + NUM_TIMED + 3)
        self.choices = zeros(choices_shape)  # of mixtures of experts, see `models.balance`
        self.bad_sample_ids: list[int] = []

    def add(self, **values: float) -> None:
        """Adds to some of `SCALARS`."""
        for name, value in values.items():
            self.scalars[self.SCALARS.index(name)] += value

    def add_weights(self, weight_sums: Tensor) -> None:
        """Adds the weights of learned tokens: their sum, that of their squares and the largest, (3,)."""
        total, squares, largest = weight_sums.tolist()
        self.add(weight_sum=total, weight_squares=squares)
        self.maxima[NUM_TENTHS] = max(float(self.maxima[NUM_TENTHS]), largest)

    def add_spans(self, t: Tensor, component: Tensor, nll_sum: Tensor, num_kept: Tensor, gradient_norm: Tensor) -> None:
        """Adds what has a level of its own, documents or blocks: all arguments (N,), on the CPU."""
        bins = (t * NUM_TENTHS).long().clamp(max=NUM_TENTHS - 1)
        values = torch.stack([torch.ones_like(t), nll_sum, num_kept, gradient_norm]).double()
        self.binned.index_add_(1, bins, values)
        self.components.index_add_(1, component, values[:3])
        self.maxima.scatter_reduce_(0, bins, 1.0 / t.double(), "amax")

    def add_rank(self, seconds: dict[str, float], gathering: float, memory: tuple[float, float], ranks: Ranks) -> None:
        """Adds a rank's `StepClock.read`, `GatherClock.read` and `peak_memory`, once a step, when its tokens are added.

        Its own seconds are those in which it waited neither in a collective of ours nor for weights.
        """
        own = sum(seconds.values()) - seconds["communication"] - gathering
        spent = [*(seconds[part] for part in PARTS), gathering, own]
        self.scalars[-NUM_TIMED:] = torch.tensor(spent, dtype=torch.float64) / ranks.world_size
        all_tokens = ranks.world_size * float(self.scalars[self.SCALARS.index("num_tokens")])
        signed = [with_rank(each, ranks.rank) for each in spent]
        self.maxima[NUM_TENTHS + 1 :] = torch.tensor([*signed, *memory, all_tokens], dtype=torch.float64)

    def summed(self) -> Tensor:
        """The part that adds up, as one vector."""
        return torch.cat([self.scalars, self.components.flatten(), self.binned.flatten(), self.choices.flatten()])

    def replace(self, summed: Tensor, maxima: Tensor) -> None:
        """Takes the sums and maxima over all ranks."""
        parts = (self.scalars, self.components, self.binned, self.choices)
        split = zip(summed.split([part.numel() for part in parts]), parts, strict=True)
        self.scalars, self.components, self.binned, self.choices = (new.view_as(part) for new, part in split)
        self.maxima = maxima

    @property
    def loss(self) -> float:
        """The step's loss."""
        return float(self.scalars[0])

    def record(self, time_scaling: bool) -> dict[str, Any]:
        """The step as a line of `metrics.jsonl`; what has no documents to show it is `None`.

        What stands there by level or component counts documents, or with `objective.level_per=block` the blocks that
        have response tokens.

        `scoring_agreement` is the share of tokens that the difficulty table and exact scores both choose, where both
        are known, and `scoring_chance` the share that two random choices have in common. Seconds of the parts are means
        over the ranks; `slowest_seconds` has each part on the rank where it took longest, which `slowest_ranks` names.
        `slowest_rank` has most seconds of its own, `behind_seconds` more than the mean. Memory is that of the rank with
        most. `tokens_imbalance` is the most tokens of a rank over the ranks' mean.

        With w the weights of learned tokens in the loss, `effective_num_learned` is (sum w)^2 / sum w^2: how many of
        equal weight would average as well. `largest_weight_share` is the largest w over their sum.

        Of mixtures of experts there is more, see `models.balance.summary`.
        """
        scalars = dict(zip(self.SCALARS, self.scalars.tolist(), strict=True))
        compared, squares = scalars["num_compared"], scalars["weight_squares"]
        documents, nll, kept, gradient = self.binned
        max_inverse_t, largest_weight, slowest, rest = self.maxima.split([NUM_TENTHS, 1, NUM_TIMED, 3])
        allocated, reserved, most_tokens = rest.tolist()
        *of_parts, _, (own, last) = map(without_rank, slowest.tolist())
        longest = dict(zip(PARTS, of_parts, strict=True))
        of_component, component_nll, component_kept = self.components
        shares = of_component / of_component.sum().clamp(min=1)
        return {
            "loss": scalars["loss"],
            "num_tokens": int(scalars["num_tokens"]),
            "tokens_imbalance": most_tokens / scalars["num_tokens"] if scalars["num_tokens"] else None,
            "num_input_tokens": int(scalars["num_input_tokens"]),
            "num_attention_pairs": int(scalars["num_attention_pairs"]),
            "num_learned": int(kept.sum()),
            "effective_num_learned": scalars["weight_sum"] ** 2 / squares if squares else None,
            "largest_weight_share": float(largest_weight) / scalars["weight_sum"] if squares else None,
            "num_documents": int(scalars["num_documents"]),
            "num_skipped": int(scalars["num_skipped"]),
            "num_bad_rows": int(scalars["num_bad_rows"]),
            "component_share": dict(zip(COMPONENTS, shares.tolist(), strict=True)),
            "component_token_nll": dict(zip(COMPONENTS, _ratio(component_nll, component_kept), strict=True)),
            **{f"{part}_seconds": scalars[f"{part}_seconds"] for part in PARTS},
            "gather_seconds": scalars["gather_seconds"],
            "slowest_seconds": {part: most for part, (most, _) in longest.items()},
            "slowest_ranks": {part: rank for part, (_, rank) in longest.items()},
            "slowest_rank": {
                "rank": last,
                "own_seconds": own,
                "behind_seconds": own - scalars["own_seconds"],
            },
            "peak_memory_gib": allocated,
            "peak_reserved_gib": reserved or None,
            "scoring_agreement": scalars["num_in_common"] / compared if compared else None,
            "scoring_chance": scalars["num_by_chance"] / compared if compared else None,
            "max_inverse_t": float(max_inverse_t.max()) if time_scaling else 1.0,
            "t_documents": documents.int().tolist(),
            "t_token_nll": _ratio(nll, kept),
            "t_max_inverse_t": [value or None for value in max_inverse_t.tolist()],
            "t_gradient_norm": _ratio(gradient, documents),
            **(summary(self.choices) if self.choices.numel() else {}),
        }


def with_rank(seconds: float, rank: int) -> float:
    """Seconds, up to the next millionth, and whose they are: the largest of such numbers has the rank of the largest.

    Exact in float64 for 2^33 millionths, 2.4 hours, and 2^20 ranks.
    """
    return float(math.ceil(seconds * PER_SECOND) * RANK_BITS + rank)


def without_rank(signed: float) -> tuple[float, int]:
    """The seconds and the rank of `with_rank`."""
    millionths, rank = divmod(int(signed), RANK_BITS)
    return millionths / PER_SECOND, rank


def _ratio(numerator: Tensor, denominator: Tensor) -> list[float | None]:
    return [
        top / bottom if bottom else None for top, bottom in zip(numerator.tolist(), denominator.tolist(), strict=True)
    ]


class MetricsFile:
    """Appends records to `metrics.jsonl`, one line each, flushed at once; nowhere without a path, on other ranks.

    `listeners` get every record that is appended.
    """

    def __init__(self, path: Path | None) -> None:
        self.file: TextIO | None = None
        self.step = 0  # the highest of any record; checkpoints come after later steps
        self.listeners: list[Callable[[dict[str, Any]], None]] = []
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        is_torn = path.is_file() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
        self.file = path.open("a", encoding="utf-8")
        if is_torn:  # a killed run's last line
            self.file.write("\n")

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Appends one record with its kind, step and time of day; numbers that are not finite become `None`."""
        self.step = max(self.step, step)
        if self.file is not None:
            record = _finite({"kind": kind, "step": step, "time": round(time.time(), 3), **values})
            append_line(self.file, json.dumps(record))
            for take in self.listeners:
                take(record)

    def close(self) -> None:
        """Closes the file."""
        if self.file is not None:
            self.file.close()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
