"""What an evaluation task is: one row of the table in `tasks/__init__.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lift_ds.evaluation.judging import Problem, Scorer

Values = dict[str, Any]  # a row of a data set, by column
Reader = Callable[[Values, str], Problem]
"""From a row, and its file and number, to its problem; raises ValueError where it is not one of the task's."""


@dataclass(frozen=True, kw_only=True)
class EvalTask:
    """An evaluation task: where its problems are, how a row of them is read, and who judges the answers.

    Any task also reads rows with `question` and `ground_truth` (and `entry_point`), the columns of a file of
    generations.

    Args:
        name: What commands and protocols call it.
        strict: Counts what is right.
        check: Raises ValueError where a problem's question or ground truth is not of this task.
        reference: Counts as the published evaluation does; `None` where nothing is published.
        source: Where its rows are: a file, or `hub:owner/name[:config][@split]`; `None` where one has to be named.
        known_file: A file that is known to hold its rows; for messages, where it has no source.
        read: How a row is read, by the columns that it must have; of several forms the first that fits.
        make: Makes so many problems, where they are not read; the number is free, and has to be given.
        parts: What `Score.total` counts.
        needs_maths: Whether its scorers read LaTeX, for which the extra `eval` is needed.
        shows_tests: Whether a prompt may show the ground truth as {tests}: it is tests, not the answer.
    """

    name: str
    strict: Scorer
    check: Callable[[Problem], None]
    reference: Scorer | None = None
    source: str | None = None
    known_file: str = ""
    read: Mapping[tuple[str, ...], Reader] = field(default_factory=dict)
    make: Callable[[int], list[Problem]] | None = None
    parts: str = "answers"
    needs_maths: bool = False
    shows_tests: bool = False

    def scorer(self, name: str) -> Scorer | None:
        """Its scorer of a name of `SCORER_VERSIONS`; `None` where it has none."""
        return {"reference": self.reference, "strict": self.strict}[name]
