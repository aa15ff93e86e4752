"""What a built-in task produces, and how its answers are read."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

TEST_SHARE = 8
ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
NUMBER = re.compile(r"[0-9]{1,6}")


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
        key: What makes the item the same item as another, at any level; train and test are disjoint in it.
        level: How hard it is, from 1, the easiest.
        strata: What else items can be grouped by, each a whole number with its name.
        parts: Keys of other items that the response solves on its way; no test item is a part of a training item.
    """

    task: str
    question: str
    response: str
    key: str
    level: int
    strata: Mapping[str, int]
    parts: tuple[str, ...] = ()


class Task(Protocol):
    """A source of items without end, and a strict judge of answers."""

    name: str

    @property
    def levels(self) -> tuple[str, ...]:
        """What each level holds, in words, the easiest first."""

    def propose(self, chance: random.Random, level: int) -> Item:
        """Draws an item of a level, of either split."""

    def verify(self, key: str, generation: str) -> Verdict:
        """Judges a generation for the item with that key; never evaluates it as code."""


def split_of(key: str) -> str:
    """`test` for one key in eight, else `train`; a pure function of the key, so the splits never meet."""
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return "test" if int.from_bytes(digest, "big") % TEST_SHARE == 0 else "train"


def draw_item(task: Task, level: int, seed: int, split: str, index: int) -> Item:
    """Item number `index` of a level and split, `train` or `test`: the same for the same arguments, on every machine.

    It is the first proposal that belongs to the split, in a sequence keyed by all arguments. The sequence of a task's
    highest level bears the task's name alone: it was the only one once, and its items are still the same.

    Raises:
        ValueError: `split` is neither `train` nor `test`, or the task has no such level.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split={split!r}: allowed are 'train' and 'test'.")
    if not 1 <= level <= len(task.levels):
        raise ValueError(f"level={level}: {task.name} has levels 1 to {len(task.levels)}.")
    stream = task.name if level == len(task.levels) else f"{task.name}/{level}"
    chance = random.Random(f"{stream}/{seed}/{split}/{index}")
    while True:
        item = task.propose(chance, level)
        solved = (item.key, *item.parts) if split == "train" else (item.key,)
        if all(split_of(key) == split for key in solved):
            return item


def read_answer(generation: str) -> str | None:
    """The text between the only pair of answer tags, stripped; `None` where there is no pair or more than one."""
    answers = ANSWER.findall(generation)
    return answers[0].strip() if len(answers) == 1 else None


def judge_number(expected: int, generation: str) -> Verdict:
    """Right where the answer is the expected number, in digits; anything but digits is unparsed."""
    answer = read_answer(generation)
    if answer is None or not NUMBER.fullmatch(answer):
        return Verdict.UNPARSED
    return Verdict.SOLVED if int(answer) == expected else Verdict.WRONG
