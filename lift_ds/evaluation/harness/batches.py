"""Batches of work, dealt to the ranks, whose results are kept as they come."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lift_ds.evaluation.line_log import LineLog
from lift_ds.evaluation.ranks import Ranks

Rounds = list[tuple[int, bool]]
Bar = Callable[[Rounds], Iterable[tuple[int, bool]]]
"""Shows how far a loop over rounds has come."""


def rounds(numbers: Sequence[int], ranks: Ranks) -> Rounds:
    """The batches of this rank, as many on every rank: (number, counts); repeats that fill up do not count.

    Args:
        numbers: The batches to compute. Which items make one does not depend on the number of ranks, and so no result
            does.
        ranks: The processes.
    """
    places = range(ranks.rank, -(-len(numbers) // ranks.world_size) * ranks.world_size, ranks.world_size)
    return [(numbers[min(place, len(numbers) - 1)], place < len(numbers)) for place in places]


def log_of(path: Path) -> LineLog:
    """The results of a rank."""
    return LineLog(path, ("key", "values"))


class Batches:
    """Computes batches; every rank calls it with the same ones, does its part, and has all results.

    Args:
        ranks: The processes.
        folder: Where each rank keeps what it computed, so that the same evaluation goes on from it after a cut, on any
            number of ranks; `None` keeps nothing.
        identity: What results depend on besides the batches: names the weights.

    Raises:
        ValueError: Another evaluation is writing there, or a file is none of these.
        OSError: The folder cannot be written.
    """

    def __init__(self, ranks: Ranks, folder: Path | None = None, identity: str = "") -> None:
        """Reads what was kept."""
        self.ranks, self.identity = ranks, identity
        self.log: LineLog | None = None
        self.kept: dict[str, list[Any]] = {}
        self.num_kept = 0  # batches that were taken from what was kept
        self._lock = ExitStack()
        if folder is not None:
            self.log = log_of(folder / f"{ranks.rank}.jsonl")
            folder.mkdir(parents=True, exist_ok=True)
            ranks.on_main(lambda: self._lock.enter_context(log_of(folder / "0.jsonl").locked()))
            for share in ranks.gather_objects(self.read(folder)):
                self.kept |= share

    def read(self, folder: Path) -> dict[str, list[Any]]:
        """This rank's results by key; on rank 0 also those of other ranks that this machine sees."""
        own = folder / f"{self.ranks.rank}.jsonl"
        found = log_of(own).lines()
        for path in sorted(folder.glob("*.jsonl")) if self.ranks.rank == 0 else []:
            found += [] if path == own else log_of(path).lines(mends=False)
        return {line["key"]: line["values"] for line in found}

    def run(
        self, num_batches: int, key: Callable[[int], object], compute: Callable[[int], list[Any]], bar: Bar
    ) -> list[list[Any]]:
        """The results of batches, in their order.

        Args:
            num_batches: How many there are.
            key: All that decides the result of the batch of a number, as a value whose text says it.
            compute: Its result: numbers or truth values, or lists of them.
            bar: Shows the rounds.
        """
        names = {number: self.name(key(number)) for number in range(num_batches)} if self.log else {}
        found = {number: self.kept[name] for number, name in names.items() if name in self.kept}
        self.num_kept += len(found)
        made = {}
        for number, counts in bar(rounds([each for each in range(num_batches) if each not in found], self.ranks)):
            values = compute(number)
            if counts:
                made[number] = values
                if self.log is not None:
                    self.log.add([{"key": names[number], "values": values}])
        for share in self.ranks.gather_objects(made):
            found |= share
        return [found[number] for number in range(num_batches)]

    def name(self, key: object) -> str:
        """What a result is kept under."""
        return hashlib.blake2b(f"{self.identity} {key!r}".encode(), digest_size=16).hexdigest()
