"""The log of an evaluation's answers: one line each, written as they are made, so that nothing is made twice."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

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


class SampleLog:
    """A JSON Lines file that is appended to.

    Args:
        path: The file; made where there is none.
    """

    def __init__(self, path: Path) -> None:
        """Stores the place."""
        self.path = path

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other evaluations away: two would make everything twice, and cut off each other's lines.

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

    def read(self) -> dict[Key, Sample]:
        """All whole lines by key; half a line at the end, from a kill, is cut off.

        Raises:
            ValueError: A line is none of this log.
        """
        if not self.path.is_file():
            return {}
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            os.truncate(self.path, len(whole))
        found = {}
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                sample = Sample(**json.loads(line))
            except (ValueError, TypeError) as error:
                raise ValueError(f"{self.path}:{number}: no line of this log: {error}; remove the folder.") from error
            found[sample.key] = sample
        return found

    def append(self, samples: Iterable[Sample]) -> None:
        """Writes answers and sees them onto the disk."""
        with self.path.open("ab") as file:
            file.write(b"".join(json.dumps(asdict(sample)).encode() + b"\n" for sample in samples))
            file.flush()
            os.fsync(file.fileno())
