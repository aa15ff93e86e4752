"""Batches of work, dealt to the ranks, whose results are kept as they come."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from lift_ds.evaluation.asking.samples import LineLog
from lift_ds.ranks.shares import Ranks, equal_share

log = logging.getLogger("lm_eval.lift_ds")  # shown as the harness's own messages are
Rounds = list[tuple[int, bool]]
Bar = Callable[[Rounds], Iterable[tuple[int, bool]]]  # shows how far a loop over rounds has come


log_of = partial(LineLog, names=("key", "values"))


def read_kept(path: Path) -> dict[str, list[Any]]:
    """A rank's results by key; what is no line of the file, after a power cut, is said and computed again."""
    lines = log_of(path).lines()
    broken = [number for number, line in enumerate(lines, start=1) if line is None]
    if broken:
        log.warning(
            "%s: %d lines are broken, the first is line %d; they are computed again", path, len(broken), broken[0]
        )
    return {line["key"]: line["values"] for line in lines if line is not None}


class Batches:
    """Computes batches; every rank calls it with the same ones, does its part, and has all results.

    In a folder each rank keeps what it computed, so that the same evaluation goes on from it after a cut, on any number
    of ranks. `identity` is what results depend on besides the batches: it names weights, code and device.

    Raises:
        ValueError: Another evaluation is writing there.
        OSError: The folder cannot be written.
    """

    def __init__(self, ranks: Ranks, folder: Path | None = None, identity: str = "") -> None:
        self.ranks, self.identity = ranks, identity
        self.num_kept = 0  # batches that were taken from what was kept
        self._held = ExitStack()
        self.kept, self.log = ({}, None) if folder is None else self._open(folder)

    def _open(self, folder: Path) -> tuple[dict[str, list[Any]], LineLog | None]:
        """What was kept, and where this rank adds to it."""

        def claim() -> dict[str, list[Any]]:
            folder.mkdir(parents=True, exist_ok=True)
            self._held.enter_context(log_of(folder / "0.jsonl").locked())
            paths = [path for path in sorted(folder.glob("*.jsonl")) if path.stem.isdigit()]
            return {key: values for path in paths for key, values in read_kept(path).items()}

        kept: dict[str, list[Any]] = self.ranks.on_main(claim)
        folder.mkdir(parents=True, exist_ok=True)  # of other machines
        mine = log_of(folder / f"{self.ranks.rank}.jsonl")
        mine.mend()
        own = {} if self.ranks.rank == 0 else read_kept(mine.path)
        unseen = {key: values for key, values in own.items() if key not in kept}
        for share in self.ranks.gather_objects(unseen):
            kept |= share
        return kept, mine

    def close(self) -> None:
        """Lets other evaluations use the folder."""
        self._held.close()

    def run(
        self, num_batches: int, key: Callable[[int], object], compute: Callable[[int], list[Any]], bar: Bar
    ) -> list[list[Any]]:
        """The results of batches, in their order.

        Which items make one must not depend on the number of ranks. The text of `key` says all that decides what
        `compute` makes of the batch of a number: numbers or truth values, or lists of them.

        Raises:
            ValueError: The ranks were not given the same batches; on every rank.
        """
        names = [self._name(key(number)) for number in range(num_batches)]
        first, *others = self.ranks.gather_objects(self._name(names))
        differ = [str(rank) for rank, other in enumerate(others, start=1) if other != first]
        if differ:
            raise ValueError(
                f"rank {', '.join(differ)} was given other requests than rank 0; every machine needs the same task "
                "files, tokenizer and packages."
            )
        computed = {number: self.kept[name] for number, name in enumerate(names) if name in self.kept}
        self.num_kept += len(computed)
        made = {}
        missing = [number for number in range(num_batches) if number not in computed]
        for number, counts in bar(equal_share(missing, self.ranks) if missing else []):
            values = compute(number)
            if counts:
                made[number] = values
                if self.log is not None:
                    self.log.add([{"key": names[number], "values": values}])
        for share in self.ranks.gather_objects(made):
            computed |= share
        return [computed[number] for number in range(num_batches)]

    def _name(self, key: object) -> str:
        return hashlib.blake2b(f"{self.identity} {key!r}".encode(), digest_size=16).hexdigest()
