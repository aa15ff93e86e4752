"""What a built-in task produces, and how its answers are read."""

from __future__ import annotations

import hashlib
import random
import re
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

TEST_SHARE = 8
ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


class Verdict(Enum):
    """What a verifier says of a generation: no well-formed answer, a wrong one, or a right one."""

    UNPARSED = "unparsed"
    WRONG = "wrong"
    SOLVED = "solved"


@dataclass(frozen=True)
class Item:
    """One question with a worked response.

    Args:
        response: Worked answer, ending in `<answer>...</answer>`.
        key: What makes the item the same item as another; train and test are disjoint in it.
    """

    task: str
    question: str
    response: str
    key: str


class Task(Protocol):
    """A source of items without end, and a strict judge of answers."""

    name: str

    def propose(self, chance: random.Random) -> Item:
        """Draws an item of either split."""

    def verify(self, item: Item, generation: str) -> Verdict:
        """Judges a generation for `item`; never evaluates it as code."""


def split_of(key: str) -> str:
    """`test` for one key in eight, else `train`; a pure function of the key, so the splits never meet."""
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return "test" if int.from_bytes(digest, "big") % TEST_SHARE == 0 else "train"


def draw_item(task: Task, seed: int, split: str, index: int) -> Item:
    """Item number `index` of a split, `train` or `test`: the same for the same arguments, on every machine.

    It is the first proposal of the sequence keyed by all arguments whose key belongs to the split.

    Raises:
        ValueError: `split` is neither `train` nor `test`.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split={split!r}: allowed are 'train' and 'test'.")
    chance = random.Random(f"{task.name}/{seed}/{split}/{index}")
    while True:
        item = task.propose(chance)
        if split_of(item.key) == split:
            return item


def read_answer(generation: str) -> str | None:
    """The text between the only pair of answer tags, stripped; `None` where there is no pair or more than one."""
    answers = ANSWER.findall(generation)
    return answers[0].strip() if len(answers) == 1 else None
