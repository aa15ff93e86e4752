"""The log of an evaluation's answers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from .line_log import LineLog

Key = tuple[str, int, int]


@dataclass(frozen=True)
class Sample:
    """One answer to one problem.

    Args:
        task: The task.
        index: Number of the problem.
        sample: Number of the answer.
        generation: Its text.
        num_tokens: Its tokens before the first special one.
        is_ended: Whether it came to its end within its length.
        num_forwards: Forwards of the model that it took.
        num_denoised: Tokens of its blocks that were denoised.
        seconds: Its share of the batch's time, over all ranks.
    """

    task: str
    index: int
    sample: int
    generation: str
    num_tokens: int
    is_ended: bool
    num_forwards: int
    num_denoised: int
    seconds: float

    @property
    def key(self) -> Key:
        """What it is an answer to."""
        return self.task, self.index, self.sample


class SampleLog(LineLog):
    """The answers of an evaluation, one line each, written as they are made."""

    def __init__(self, path: Path) -> None:
        """Stores the place."""
        super().__init__(path, [field.name for field in fields(Sample)])

    def read(self) -> dict[Key, Sample]:
        """All lines by key; half a line at the end is cut off.

        Raises:
            ValueError: A line is none of this log.
        """
        self.mend()
        found = {}
        for number, line in enumerate(self.lines(), start=1):
            if line is None:
                raise ValueError(f"{self.path}:{number}: no line of this log; remove the folder.")
            sample = Sample(**line)
            found[sample.key] = sample
        return found

    def append(self, samples: Iterable[Sample]) -> None:
        """Writes answers and sees them onto the disk."""
        self.add(map(asdict, samples))
