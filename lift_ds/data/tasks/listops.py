"""Nested operations on lists of digits (ListOps), worked out from the inside.

Source: Nangia and Bowman, ListOps: A Diagnostic Dataset for Latent Tree Learning, 2018.

Differs: written as functions, without the median; each operation has at most one nested one.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from .item import Item, Verdict, judge_number

OPERATIONS: dict[str, Callable[[Iterable[int]], int]] = {
    "max": max,
    "min": min,
    "sm": lambda digits: sum(digits) % 10,
}
QUESTION = "Evaluate {operation}."
FEWEST_ARGUMENTS, MOST_ARGUMENTS = 2, 3


@dataclass(frozen=True)
class Operation:
    """The name of an operation, its digits, and the operation that stands before digit number `place`, if any."""

    name: str
    digits: tuple[int, ...]
    inner: Operation | None = None
    place: int = 0

    def __str__(self) -> str:
        return f"{self.name}({','.join(self._arguments(str))})"

    @property
    def canonical(self) -> str:
        """The operation as text, the arguments of each one in alphabetical order, on which no value depends."""
        return f"{self.name}({','.join(sorted(self._arguments(lambda inner: inner.canonical)))})"

    def _arguments(self, write: Callable[[Operation], str]) -> list[str]:
        texts = [str(digit) for digit in self.digits]
        if self.inner is not None:
            texts.insert(self.place, write(self.inner))
        return texts

    @property
    def flat(self) -> Operation:
        """The operation with the nested one worked out."""
        if self.inner is None:
            return self
        return Operation(self.name, (*self.digits[: self.place], self.inner.value, *self.digits[self.place :]))

    @property
    def value(self) -> int:
        """One digit."""
        return OPERATIONS[self.name](self.flat.digits)

    @property
    def nested(self) -> list[Operation]:
        """All operations, the innermost first, this one last."""
        return [*([] if self.inner is None else self.inner.nested), self]


class ListOps:
    """The largest (`max`), the smallest (`min`) or the sum modulo 10 (`sm`) of digits; a level is a depth of nesting.

    Strata: the `depth`, and the number of `digits` in the question.
    """

    name = "listops"
    levels = ("depth 1", "depth 2", "depth 3")

    def propose(self, chance: random.Random, level: int) -> Item:
        """Draws operations of two or three arguments around each other."""
        operation: Operation | None = None
        for _ in range(level):
            operation = draw_operation(chance, operation)
        assert operation is not None
        nested = operation.nested
        lines = "".join(f"{each.flat}={each.value}\n" for each in nested)
        keys = dict.fromkeys(listops_key(part) for each in nested for part in (each, each.flat))
        key = listops_key(operation)
        return Item(
            task=self.name,
            question=QUESTION.format(operation=operation),
            response=f"{lines}<answer>{operation.value}</answer>",
            key=key,
            level=level,
            strata={"depth": level, "digits": sum(len(each.digits) for each in nested)},
            parts=tuple(part for part in keys if part != key),
        )

    def verify(self, key: str, generation: str) -> Verdict:
        """Right where the answer is the value, in digits; anything but digits is unparsed."""
        return judge_number(int(key.rsplit(" ", 1)[1]), generation)


def draw_operation(chance: random.Random, inner: Operation | None = None) -> Operation:
    """An operation of two or three arguments, one of which is `inner`, where it is given."""
    count = chance.randint(FEWEST_ARGUMENTS, MOST_ARGUMENTS) - (inner is not None)
    digits = tuple(chance.randrange(10) for _ in range(count))
    return Operation(chance.choice(list(OPERATIONS)), digits, inner, 0 if inner is None else chance.randint(0, count))


def listops_key(operation: Operation) -> str:
    """What makes two items the same: the arguments of each operation in any order; ends in the value."""
    return f"listops {operation.canonical} {operation.value}"
