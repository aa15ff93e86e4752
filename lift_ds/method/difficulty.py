"""How hard each token is at each mask level: a table that training fills as it scores.

    S[b, v] = sum over observations of  decay^(now - step) nll,      N[b, v] = the same of 1
    difficulty(b, v) = (S + k prior) / (N + k)

    prior(b, v) = the mean of tokens of about v's frequency at level b, shrunk by k towards b's mean, and that towards
                  the mean of all, so that a pair that was never seen has the difficulty of pairs like it

b is a bin of the mask level, v a token id. Decay goes by the optimizer step of an observation, not by when it arrives,
so the table does not depend on how a step is cut into micro-batches and ranks, or on how often ranks exchange.

The vocabulary is cut into equal ranges, one a rank, which owns that part of the table. A rank notes what it observes
and hands it to the owners at a sync; `training.buffers` moves the parts. With a sync after every step the table is the
same to the last bit on any number of ranks.
Memory of a rank: 8 bytes x bins x V / ranks.

Source: none. The public code has no such table.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

NUM_BINS = 16
NUM_FREQUENCIES = 24
PRIOR_COUNT = 2.0
GRID = 2.0**20


def level_bin(level: Tensor) -> Tensor:
    """Bin (int64) of mask levels in (0, 1]; bin b holds (b / NUM_BINS, (b + 1) / NUM_BINS]."""
    return (level * NUM_BINS).ceil().long().sub(1).clamp(0, NUM_BINS - 1)


def on_grid(values: Tensor) -> Tensor:
    """Rounded to multiples of 2^-20, float64: sums of these are exact, in whatever order and parts they are added."""
    return values.double().mul(GRID).round().div(GRID)


@dataclass(frozen=True)
class Observations:
    """Sums by (token, bin) as of one optimizer step."""

    keys: Tensor  # int64 (K,), token x NUM_BINS + bin, ascending and distinct
    sums: Tensor  # float64 (K,), decayed sums of -log p(gold)
    counts: Tensor  # float64 (K,), decayed counts

    @staticmethod
    def empty() -> Observations:
        """No pair."""
        nothing = torch.zeros(0, dtype=torch.float64)
        return Observations(nothing.long(), nothing, nothing)

    @staticmethod
    def of(tokens: Tensor, levels: Tensor, nll: Tensor) -> Observations:
        """Of one step: int64 (R,) true ids, the mask levels (R,) of their input, and their -log p (R,)."""
        keys = tokens.cpu() * NUM_BINS + level_bin(levels).cpu()
        return Observations(keys, on_grid(nll.cpu()), torch.ones(len(keys), dtype=torch.float64)).merged()

    def merged(self) -> Observations:
        """Each pair once."""
        keys, inverse = self.keys.unique(return_inverse=True)
        zeros = torch.zeros(len(keys), dtype=torch.float64)
        return Observations(keys, zeros.index_add(0, inverse, self.sums), zeros.index_add(0, inverse, self.counts))

    def joined(self, others: list[Observations]) -> Observations:
        """All, each pair once; added in this order, so that it does not matter how many are joined at once."""
        columns = zip(*(each.columns() for each in (self, *others)), strict=True)
        return Observations(*(torch.cat(column) for column in columns)).merged()

    def scaled(self, factor: float) -> Observations:
        """The same, decayed."""
        return Observations(self.keys, self.sums * factor, self.counts * factor)

    def columns(self) -> tuple[Tensor, Tensor, Tensor]:
        """Keys, sums and counts."""
        return self.keys, self.sums, self.counts

    def cut(self, bounds: Tensor) -> list[Observations]:
        """Parts by owner; `bounds` are the first keys of all owners but the first."""
        edges = [0, *torch.searchsorted(self.keys, bounds).tolist(), len(self.keys)]
        return [Observations(*(column[start:end] for column in self.columns())) for start, end in pairwise(edges)]


class DifficultyTable:
    """One rank's range of the table, and what it noted since the last sync; at first empty, at step 0.

    Raises:
        ValueError: `decay`, the factor of a step, is outside (0, 1].
    """

    def __init__(self, vocab_size: int, rank: int = 0, world_size: int = 1, decay: float = 0.999) -> None:
        if not 0 < decay <= 1:
            raise ValueError(f"decay={decay}: allowed are 0 < decay <= 1; 1 never forgets.")
        self.vocab_size, self.rank, self.world_size, self.decay = vocab_size, rank, world_size, decay
        self.range_size = -(-vocab_size // world_size)
        self.first = min(rank * self.range_size, vocab_size)
        width = min(self.first + self.range_size, vocab_size) - self.first
        self.sums = torch.zeros(width, NUM_BINS)
        self.counts = torch.zeros(width, NUM_BINS)
        self.step, self.pending_step, self.pending = 0, 0, Observations.empty()
        self.groups = torch.zeros(2, NUM_FREQUENCIES, NUM_BINS, dtype=torch.float64)

    @property
    def bounds(self) -> Tensor:
        """First keys, int64, of the ranges of ranks 1, 2, ..."""
        return torch.arange(1, self.world_size) * (self.range_size * NUM_BINS)

    def observe(self, observations: list[Observations], step: int) -> None:
        """Notes observations of optimizer step `step`, in their order; it never goes back."""
        older = self.pending.scaled(self.decay ** (step - self.pending_step))
        self.pending, self.pending_step = older.joined(observations), step

    def outgoing(self, step: int) -> list[Observations]:
        """What each owner gets at a sync after step `step`; nothing is pending then."""
        ready = self.pending.scaled(self.decay ** (step - self.pending_step))
        self.pending, self.pending_step = Observations.empty(), step
        return ready.cut(self.bounds)

    def absorb(self, received: list[Observations], step: int) -> Tensor:
        """Adds what the ranks sent; returns this range's sums by frequency class, of all ranks for `set_groups`."""
        factor = self.decay ** (step - self.step)
        self.sums *= factor
        self.counts *= factor
        self.step = step
        news = Observations.empty().joined(received)  # one sum a pair, whoever observed how much of it
        index = news.keys - self.first * NUM_BINS
        self.sums.view(-1).index_add_(0, index, news.sums.float())
        self.counts.view(-1).index_add_(0, index, news.counts.float())
        groups = torch.zeros_like(self.groups)
        frequency = self.frequency(torch.arange(len(self.sums)))
        groups[0].index_add_(0, frequency, on_grid(self.sums))
        groups[1].index_add_(0, frequency, on_grid(self.counts))
        return groups

    def set_groups(self, groups: Tensor) -> None:
        """Takes the sums by frequency of all ranks, float64 (2, NUM_FREQUENCIES, NUM_BINS)."""
        self.groups = groups

    def frequency(self, rows: Tensor) -> Tensor:
        """Frequency class (int64) of tokens, by their place in this range: 0 unseen, then powers of two."""
        return self.counts[rows].sum(-1).add(1).log2().ceil().long().clamp(0, NUM_FREQUENCIES - 1)

    def look_up(self, keys: Tensor) -> Tensor:
        """Difficulties (K,) float32, in nats, of pairs (K,) int64 that this rank owns."""
        rows, bins = keys // NUM_BINS - self.first, keys % NUM_BINS
        prior = self.prior()[self.frequency(rows), bins]
        counts = self.counts[rows, bins]
        return (self.sums[rows, bins] + PRIOR_COUNT * prior) / (counts + PRIOR_COUNT)

    def prior(self) -> Tensor:
        """Difficulty of an unseen pair by frequency class and bin: float32 (NUM_FREQUENCIES, NUM_BINS)."""

        def shrunk(sums: Tensor, counts: Tensor, towards: Tensor) -> Tensor:
            return (sums + PRIOR_COUNT * towards) / (counts + PRIOR_COUNT)

        sums, counts = self.groups
        overall = sums.sum() / counts.sum().clamp(min=1e-9)
        by_bin = shrunk(sums.sum(0), counts.sum(0), overall)
        return shrunk(sums, counts, by_bin).float()

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps of this rank; pending observations are kept pending."""
        return {
            "sums": self.sums,
            "counts": self.counts,
            "groups": self.groups,
            "pending_keys": self.pending.keys,
            "pending_sums": self.pending.sums,
            "pending_counts": self.pending.counts,
            "numbers": torch.tensor([self.vocab_size, self.first, self.step, self.pending_step]),
        }

    def places_read(self, num_states: int) -> list[int]:
        """Whose states this rank loads, of all that were saved: those of its range, and whose pending ones it takes."""
        size = -(-self.vocab_size // num_states)
        ranges = range(self.first // size, -(-(self.first + len(self.sums)) // size)) if len(self.sums) else range(0)
        return sorted({0, *ranges, *range(self.rank, num_states, self.world_size)})

    def load_states(self, states: dict[int, dict[str, Tensor]]) -> None:
        """Takes the states of ranks that saved, by rank, however many they were; this rank keeps its range.

        Those of `places_read` suffice. Pending observations of rank r go to rank r mod world_size.

        Raises:
            ValueError: They are of another vocabulary, or do not cover this rank's range.
        """
        num_covered, end = 0, self.first + len(self.sums)
        for state in states.values():
            vocab_size, first = state["numbers"][:2].tolist()
            if vocab_size != self.vocab_size:
                raise ValueError(
                    f"difficulty buffers of a vocabulary of {vocab_size} tokens; the model has {self.vocab_size}."
                )
            low, high = max(first, self.first), min(first + len(state["sums"]), end)
            if low < high:
                for name, mine in (("sums", self.sums), ("counts", self.counts)):
                    mine[low - self.first : high - self.first] = state[name][low - first : high - first]
                num_covered += high - low
        if num_covered != len(self.sums):
            raise ValueError(
                f"difficulty buffers of {num_covered} tokens of {len(self.sums)}; a rank's file is missing."
            )
        some = next(iter(states.values()))
        self.groups, self.step = some["groups"], int(some["numbers"][2])
        self.pending, self.pending_step = Observations.empty(), self.step
        for place, state in sorted(states.items()):
            if place % self.world_size != self.rank:
                continue
            pending = Observations(state["pending_keys"], state["pending_sums"], state["pending_counts"])
            step = int(state["numbers"][3])
            if step < self.pending_step:
                pending, step = pending.scaled(self.decay ** (self.pending_step - step)), self.pending_step
            self.observe([pending], step)

    @property
    def num_bytes(self) -> int:
        """Memory of this rank's part."""
        return 4 * (self.sums.numel() + self.counts.numel())
