"""Rows that are generated: the built-in tasks, and what the built-in base was made with."""

from __future__ import annotations

from typing import Any

from lift_ds.data.tasks import MIXTURES, instruction, pretraining_text

from .source import Chunk, Row, Source, SourceIndex

BUILTIN_CHUNK_ROWS = 512
BUILTIN_PREFIX = "builtin:"
SHUFFLED = "-shuffled"
ROWS_VERSION, TEXT_VERSION = 2, 4
"""Of the tasks' rows and of the base's texts. Raised when a name, seed and split give other rows than before: a run
that goes on finds that its data changed."""


class Builtin(Source):
    """Rows of the built-in tasks: a name of `MIXTURES`, such as `builtin:reasoning` or `builtin:countdown/1`.

    With `-shuffled` behind it, every question is answered with the response to another one of its task and level: the
    control that shows how much of a gain is the format alone. `builtin:pretraining` and `builtin:instructions` are what
    the built-in base was made with.
    """

    def __init__(self, name: str, seed: int, split: str, num_rows: int) -> None:
        super().__init__(name)
        self.seed, self.split, self.num_rows = seed, split, num_rows
        kind = name.removeprefix(BUILTIN_PREFIX)
        self.is_shuffled = kind.endswith(SHUFFLED)
        self.kind = kind.removesuffix(SHUFFLED)
        if self.kind not in MIXTURES and kind not in ("pretraining", "instructions"):
            names = ", ".join(BUILTIN_PREFIX + name for name in ("pretraining", "instructions", *MIXTURES))
            raise ValueError(
                f"data.path={name!r}: no such built-in data; allowed: {names}, the tasks also with {SHUFFLED}, "
                "or files."
            )

    def scan(self) -> SourceIndex:
        """Equal ranges of rows; seed and split stand for what they hold."""
        starts = range(0, self.num_rows, BUILTIN_CHUNK_ROWS)
        label = f"{self.name}/{self.seed}/{self.split}"
        chunks = (Chunk(label, start, min(BUILTIN_CHUNK_ROWS, self.num_rows - start)) for start in starts)
        version = ROWS_VERSION if self.kind in MIXTURES else TEXT_VERSION
        return SourceIndex(tuple(chunks), f"{label}/{self.num_rows}/version {version}")

    def read(self, chunk: Chunk) -> list[Row]:
        """Generates a range of rows."""
        rows = range(chunk.start, chunk.start + chunk.num_rows)
        return [Row(self._values(row), f"{chunk.source}: row {row}") for row in rows]

    def _values(self, row: int) -> dict[str, Any]:
        """The record of one row."""
        if self.kind == "pretraining":
            return {"text": pretraining_text(self.seed, self.split, row)}
        if self.kind == "instructions":
            return dict(zip(("prompt", "response"), instruction(self.seed, self.split, row), strict=True))
        cell, index = MIXTURES[self.kind].place(row)
        item = cell.draw(self.seed, self.split, index)
        answered = cell.draw(self.seed, self.split, index + self.num_rows) if self.is_shuffled else item
        return {"prompt": item.question, "response": answered.response}
