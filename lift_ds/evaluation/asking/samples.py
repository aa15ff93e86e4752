"""JSON Lines that grow while work is done, so that nothing is done twice after a kill; the log of answers is one."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from .answering import Answer

Key = tuple[str, int, int]  # a task, the number of its problem, and of an answer to it
FIGURES = tuple(field.name for field in fields(Answer) if field.name != "text")


class LineLog:
    """A JSON Lines file, made where there is none, that one process appends to; each line has values for the names."""

    def __init__(self, path: Path, names: Collection[str]) -> None:
        self.path, self.names = path, frozenset(names)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other evaluations away: two would do everything twice, and cut off each other's lines.

        Raises:
            ValueError: Another one is at work.
            OSError: The file cannot be written.
        """
        with self.path.open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ValueError(
                    f"{self.path.parent}: another evaluation is writing here; wait for its end."
                ) from error
            yield

    def mend(self) -> None:
        """Cuts off half a line at the end, from a kill, so that the next one is whole."""
        if self.path.is_file():
            os.truncate(self.path, self.path.read_bytes().rfind(b"\n") + 1)

    def lines(self) -> list[dict[str, Any] | None]:
        """All whole lines; `None` for what is none of this log."""
        content = self.path.read_bytes() if self.path.is_file() else b""
        return [self._parse(line) for line in content[: content.rfind(b"\n") + 1].splitlines()]

    def _parse(self, line: bytes) -> dict[str, Any] | None:
        try:
            values = json.loads(line)
        except ValueError:
            return None
        return values if isinstance(values, dict) and values.keys() == self.names else None

    def add(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Writes lines and sees them onto the disk."""
        with self.path.open("ab") as file:
            file.write(b"".join(json.dumps(line).encode() + b"\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())


@dataclass(frozen=True)
class Sample:
    """One answer to one problem; its time is a share of its batch's, over all ranks."""

    task: str
    index: int
    sample: int
    answer: Answer
    seconds: float = 0.0


class SampleLog(LineLog):
    """The answers of an evaluation, one line each, written as they are made."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, ("task", "index", "sample", "generation", *FIGURES, "seconds"))

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
            key = line["task"], line["index"], line["sample"]
            answer = Answer(line["generation"], **{name: line[name] for name in FIGURES})
            samples[key] = Sample(*key, answer, line["seconds"])
        return samples

    def append(self, samples: Iterable[Sample]) -> None:
        """Writes answers and sees them onto the disk."""
        self.add(
            {"task": each.task, "index": each.index, "sample": each.sample, "generation": each.answer.text}
            | {name: getattr(each.answer, name) for name in FIGURES}
            | {"seconds": each.seconds}
            for each in samples
        )
