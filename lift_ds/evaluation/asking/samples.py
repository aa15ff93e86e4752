"""The log of an evaluation's answers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from .answering import Answer
from .line_log import LineLog

Key = tuple[str, int, int]
FIGURES = tuple(field.name for field in fields(Answer) if field.name != "text")
LINE_NAMES = ("task", "index", "sample", "generation", *FIGURES, "seconds")


@dataclass(frozen=True)
class Sample:
    """One answer to one problem.

    Args:
        task: The task.
        index: Number of the problem.
        sample: Number of the answer.
        answer: What was answered.
        seconds: Its share of the batch's time, over all ranks.
    """

    task: str
    index: int
    sample: int
    answer: Answer
    seconds: float = 0.0

    @property
    def key(self) -> Key:
        """What it is an answer to."""
        return self.task, self.index, self.sample

    def line(self) -> dict[str, Any]:
        """What the log keeps."""
        figures = {name: getattr(self.answer, name) for name in FIGURES}
        answered = {"task": self.task, "index": self.index, "sample": self.sample, "generation": self.answer.text}
        return {**answered, **figures, "seconds": self.seconds}

    @classmethod
    def of_line(cls, line: dict[str, Any]) -> Sample:
        """The answer that the log kept."""
        answer = Answer(line["generation"], **{name: line[name] for name in FIGURES})
        return cls(line["task"], line["index"], line["sample"], answer, line["seconds"])


class SampleLog(LineLog):
    """The answers of an evaluation, one line each, written as they are made."""

    def __init__(self, path: Path) -> None:
        """Stores the place."""
        super().__init__(path, LINE_NAMES)

    def read(self) -> dict[Key, Sample]:
        """All lines by key; half a line at the end is cut off.

        Raises:
            ValueError: A line is none of this log.
        """
        self.mend()
        samples = {}
        for number, line in enumerate(self.lines(), start=1):
            if line is None:
                raise ValueError(f"{self.path}:{number}: no line of this log; remove the folder.")
            sample = Sample.of_line(line)
            samples[sample.key] = sample
        return samples

    def append(self, samples: Iterable[Sample]) -> None:
        """Writes answers and sees them onto the disk."""
        self.add(sample.line() for sample in samples)
