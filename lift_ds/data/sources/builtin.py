"""Rows that are generated: the built-in tasks, and what the built-in base was made with."""

from __future__ import annotations

from typing import Any

from lift_ds.data.tasks import TASKS, draw_item, instruction, pretraining_text

from .source import Chunk, Row, Source, SourceIndex

BUILTIN_CHUNK_ROWS = 512
BUILTIN_PREFIX = "builtin:"


class Builtin(Source):
    """Rows of the built-in tasks: `builtin:reasoning` (all of them) or a task's name.

    `builtin:pretraining` and `builtin:instructions` are what the built-in base was made with.
    `builtin:reasoning-shuffled` answers every question with another item's response: the control that shows how much
    of a gain is the format alone.
    """

    def __init__(self, name: str, seed: int, split: str, num_rows: int) -> None:
        super().__init__(name)
        self.seed, self.split, self.num_rows = seed, split, num_rows
        kind = name.removeprefix(BUILTIN_PREFIX)
        self.is_shuffled = kind.endswith("-shuffled")
        self.kind = kind.removesuffix("-shuffled")
        self.tasks = list(TASKS) if self.kind == "reasoning" else [self.kind]
        allowed = ["pretraining", "instructions", "reasoning", "reasoning-shuffled", *TASKS]
        if kind not in allowed:
            names = ", ".join(BUILTIN_PREFIX + name for name in allowed)
            raise ValueError(f"data.path={name!r}: no such built-in data; allowed: {names}, or files.")

    def scan(self) -> SourceIndex:
        """Equal ranges of rows; seed and split stand for what they hold."""
        starts = range(0, self.num_rows, BUILTIN_CHUNK_ROWS)
        label = f"{self.name}/{self.seed}/{self.split}"
        chunks = (Chunk(label, start, min(BUILTIN_CHUNK_ROWS, self.num_rows - start)) for start in starts)
        return SourceIndex(tuple(chunks), f"{label}/{self.num_rows}")

    def read(self, chunk: Chunk) -> list[Row]:
        """Generates a range of rows."""
        rows = range(chunk.start, chunk.start + chunk.num_rows)
        return [Row(self._values(row), f"{chunk.source}: row {row}") for row in rows]

    def _values(self, row: int) -> dict[str, Any]:
        """The record of one row: tasks take turns."""
        if self.kind == "pretraining":
            return {"text": pretraining_text(self.seed, self.split, row)}
        if self.kind == "instructions":
            return dict(zip(("prompt", "response"), instruction(self.seed, self.split, row), strict=True))
        task = TASKS[self.tasks[row % len(self.tasks)]]
        index = row // len(self.tasks)
        item = draw_item(task, self.seed, self.split, index)
        answered = draw_item(task, self.seed, self.split, index + self.num_rows) if self.is_shuffled else item
        return {"prompt": item.question, "response": answered.response}
