"""Best-fit packing: documents into packs of at most a given number of tokens.

Each document goes into the open pack that it fills best. Where none has room, a new one is opened, or, with all of
them open, the fullest is closed and handed on. What comes out depends on the lengths and their order only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, TypeVar

Item = TypeVar("Item")

MAX_OPEN = 6


@dataclass(eq=False)
class Pack(Generic[Item]):
    """Some items and their tokens in all; equal to itself only."""

    items: list[Item] = field(default_factory=list)
    num_tokens: int = 0


class Packer(Generic[Item]):
    """Packs items as they come; at most `max_open` packs, of at most `capacity` tokens, are open at a time."""

    def __init__(self, capacity: int, max_open: int = MAX_OPEN) -> None:
        self.capacity, self.max_open = capacity, max_open
        self.open: list[Pack[Item]] = []

    def add(self, item: Item, length: int) -> Pack[Item] | None:
        """Places an item; returns the pack that had to be closed for it, if any.

        Raises:
            ValueError: It is longer than a pack.
        """
        if length > self.capacity:
            raise ValueError(f"a document of {length} tokens in packs of {self.capacity}.")
        fitting = [pack for pack in self.open if pack.num_tokens + length <= self.capacity]
        closed = None
        if fitting:
            chosen = max(fitting, key=lambda pack: pack.num_tokens)
        else:
            if len(self.open) == self.max_open:
                closed = max(self.open, key=lambda pack: pack.num_tokens)
                self.open.remove(closed)
            chosen = Pack()
            self.open.append(chosen)
        chosen.items.append(item)
        chosen.num_tokens += length
        return closed
