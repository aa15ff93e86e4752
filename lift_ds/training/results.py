"""What micro-batches show: tensors of the device while a step runs, read in one copy when it is over.

Shapes: B documents of a micro-batch, N spans (`data.batch`), R tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain, islice
from typing import NamedTuple

import torch
from torch import Tensor

from lift_ds.ranks.moving import moved

CPU = torch.device("cpu")


class Observed(NamedTuple):
    """What a pass shows of R tokens.

    Args:
        token_ids: int64 (R,), their true ids.
        levels: float32 (R,), the mask level of their input.
        nll: float32 (R,), -log p(gold).
        at: int64 (R,), their places in the micro-batch's (B, L), in row-major order.
        is_filler: bool (R,), whether they only fill up a response: nothing is learned of these.
        is_chosen: bool (R,), whether the choice of the token hangs on its difficulty: the table, which takes the mean
            over tokens, may not learn of these.
    """

    token_ids: Tensor
    levels: Tensor
    nll: Tensor
    at: Tensor
    is_filler: Tensor
    is_chosen: Tensor

    def of(self, wanted: Tensor) -> Observed:
        """Those for which `wanted`, bool (R,), is true."""
        return Observed(*(each[wanted] for each in self))


@dataclass(frozen=True)
class StepResult:
    """All that one micro-batch shows.

    Args:
        loss: float32 scalar, detached.
        nll_sum: float32 (N,), summed -log p of learned tokens.
        num_kept: int64 (N,), learned tokens.
        weight_sums: float64 (3,), the sum of learned tokens' weights in the loss, of their squares, and the largest.
        agreement: float32 (3,), see `Choice`; 0 where nothing was compared.
        observed: What each pass shows of tokens' difficulty.
        num_views: How often the training pass saw each document.
        scoring_seconds: Tells what the pass without gradient took.
        gradient_probe: float32 (N,), a leaf whose gradient is `gradient_norms`.
        choices: float32 (M, E + 3), what was counted of the experts' choices; see `models.balance`.
    """

    loss: Tensor
    nll_sum: Tensor
    num_kept: Tensor
    weight_sums: Tensor
    agreement: Tensor
    observed: tuple[Observed, ...]
    num_views: int
    scoring_seconds: Callable[[], float]
    gradient_probe: Tensor
    choices: Tensor

    @property
    def gradient_norms(self) -> Tensor:
        """Norm (N,) of the loss's gradient at each span's final hidden states, once its backward is done."""
        assert self.gradient_probe.grad is not None, "no backward yet"
        return self.gradient_probe.grad


@dataclass(frozen=True)
class Shown:
    """The numbers of a `StepResult` on the CPU, after its backward."""

    num_views: int
    observed: list[Observed]
    loss: Tensor
    agreement: Tensor
    nll_sum: Tensor
    num_kept: Tensor
    weight_sums: Tensor
    gradient_norms: Tensor
    choices: Tensor


def read(results: list[StepResult]) -> list[Shown]:
    """What a step's micro-batches showed, in one copy, for which the host waits until the device has come so far."""
    columns = [
        [
            *(r.loss, r.agreement, r.nll_sum, r.num_kept, r.weight_sums, r.gradient_norms, r.choices),
            *chain(*r.observed),
        ]
        for r in results
    ]
    arrived = iter(moved(list(chain(*columns)), CPU))
    shown = []
    for result in results:
        numbers = list(islice(arrived, 7))
        observed = [Observed(*islice(arrived, len(Observed._fields))) for _ in result.observed]
        shown.append(Shown(result.num_views, observed, *numbers))
    return shown
