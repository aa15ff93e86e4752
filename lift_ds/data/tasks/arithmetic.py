"""Arithmetic word problems of two or three steps, in varied wording, each step worked out in words and numbers."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate

from .countdown import apply_sign
from .item import Item, Verdict, read_answer

# Words, most frequent first: draws follow Zipf's law, so that common and rare words exist.
NAMES = """Anna Ben Mia Tom Lena Sam Eva Max Nina Leo Sara Paul Emma Jack Lucy Adam Rosa Omar Ida Hugo Clara Felix
Maya Oscar Julia Ivan Nora Theo Alma Karl Vera Luis Greta Amir Elsa Hana Noah Zoe Ravi Iris Yusuf Ada Pedro Freya Kofi
Ines Marek Tara Bruno Selma Arjun Edith Tariq Wanda Kenji Olga Mateo Sanna Dario Helga Bashir Petra Sven Amara Viktor
Lotte Rafael Mei Anton Zara Emil Farah Gustav Dalia Jonas Priya Cyrus Thea Milan Aisha Otto Leila Jasper Noor Edgar
Signe Pablo Yara Henrik Salma Casper Fiona Ilya Brigitte Walter Xenia Quentin Ulrike""".split()

THINGS = """apples books pens coins cards eggs stamps balls pears shells cups stones roses plums keys nuts cakes
buttons ribbons pencils marbles candles lemons stickers tickets tulips cookies bottles peaches beads photos bricks
oranges magnets spoons cherries feathers lanterns carrots puzzles badges melons pebbles crayons muffins turnips
envelopes baskets acorns notebooks walnuts mittens pumpkins postcards whistles radishes figurines thimbles apricots
chestnuts telescopes sunflowers harmonicas blackberries paintbrushes pineapples cucumbers dumplings hazelnuts
snowglobes tambourines artichokes kaleidoscopes gooseberries medallions tangerines clementines mandolins""".split()

PLACES = """shop market school park garden library fair station harbour kitchen museum farm beach bakery theatre
workshop cabin attic orchard cellar lighthouse greenhouse observatory monastery vineyard aquarium""".split()

HOLDERS = (
    "boxes bags baskets jars trays crates drawers bowls shelves packets tins cases barrels satchels hampers".split()
)

DAYS = "Monday Friday Sunday Tuesday Saturday Thursday Wednesday".split()

CUMULATIVE = {
    len(words): list(accumulate(1.0 / (rank + 2) for rank in range(len(words))))
    for words in (NAMES, THINGS, PLACES, HOLDERS, DAYS)
}

LARGEST = 99
MORE = {"+": "more", "-": "less"}
GAINS = ("buys {n} more", "finds {n} more", "gets {n} more from {friend}", "picks {n} more", "wins {n} more")
LOSSES = ("gives {n} to {friend}", "loses {n}", "sells {n}", "breaks {n}", "leaves {n} at the {place}")
STARTS = (
    "{name} has {n} {things}.",
    "On {day} {name} has {n} {things}.",
    "{name} keeps {n} {things} at the {place}.",
    "There are {n} {things} in the bag of {name}.",
)
JOINS = (
    "{name} {first} and {second}.",
    "{name} {first}. Then {name} {second}.",
    "First {name} {first}, later {name} {second}.",
)
ASKS = (
    "How many {things} does {name} have now?",
    "How many {things} are left for {name}?",
    "Count the {things} of {name}.",
)


def pick(words: list[str], chance: random.Random, count: int = 1) -> list[str]:
    """Draws `count` different words, word number r (from 0) with weight 1 / (r + 2)."""
    drawn: list[str] = []
    while len(drawn) < count:
        word = chance.choices(words, cum_weights=CUMULATIVE[len(words)])[0]
        if word not in drawn:
            drawn.append(word)
    return drawn


@dataclass(frozen=True)
class _Story:
    """A question, its worked lines, the result, and the numbers that make it the same problem as another."""

    question: str
    lines: list[str]
    result: int
    numbers: str


class Arithmetic:
    """Stories about things that are gained, lost, shared out in equal groups, or compared."""

    name = "arithmetic"

    def propose(self, chance: random.Random) -> Item:
        """Draws one of the story kinds; every intermediate result lies between 1 and 99."""
        while True:
            story = chance.choice(STORY_KINDS)(chance)
            if story is not None:
                break
        response = "\n".join((*story.lines, f"<answer>{story.result}</answer>"))
        return Item(self.name, story.question, response, f"arithmetic {story.numbers} {story.result}")

    def verify(self, item: Item, generation: str) -> Verdict:
        """Right where the answer is the expected integer, written in digits; anything but digits is unparsed."""
        answer = read_answer(generation)
        if answer is None or not re.fullmatch(r"[0-9]{1,6}", answer):
            return Verdict.UNPARSED
        return Verdict.SOLVED if int(answer) == int(item.key.rsplit(" ", 1)[1]) else Verdict.WRONG


def _draw_sign(chance: random.Random) -> str:
    return "+" if chance.random() < 0.5 else "-"


def _gain_and_loss(chance: random.Random) -> _Story | None:
    (name, friend), (things,) = pick(NAMES, chance, 2), pick(THINGS, chance)
    (place,), (day,) = pick(PLACES, chance), pick(DAYS, chance)
    amount = start = chance.randint(2, 40)
    phrases, lines, changes = [], [f"{name} starts with {start} {things}."], []
    for _ in range(2):
        sign, n = _draw_sign(chance), chance.randint(2, 20)
        after = apply_sign(amount, sign, n)
        if not 1 <= after <= LARGEST:
            return None
        phrases.append(chance.choice(GAINS if sign == "+" else LOSSES).format(n=n, friend=friend, place=place))
        lines.append(f"{MORE[sign]}: {amount}{sign}{n}={after}")
        changes.append(f"{sign}{n}")
        amount = after
    first = chance.choice(STARTS).format(name=name, n=start, things=things, place=place, day=day)
    middle = chance.choice(JOINS).format(name=name, first=phrases[0], second=phrases[1])
    ask = chance.choice(ASKS).format(name=name, things=things)
    return _Story(f"{first} {middle} {ask}", lines, amount, f"change {start}{changes[0]}{changes[1]}")


def _equal_groups(chance: random.Random) -> _Story | None:
    """So many holders with so many things each, then a gain or a loss."""
    (name,), (things,), (holders,) = pick(NAMES, chance), pick(THINGS, chance), pick(HOLDERS, chance)
    num_groups, size, n = chance.randint(2, 5), chance.randint(2, 9), chance.randint(2, 9)
    total = num_groups * size
    sign = _draw_sign(chance)
    after = apply_sign(total, sign, n)
    if not 1 <= after <= LARGEST:
        return None
    change = f"adds {n} loose {things}" if sign == "+" else f"takes out {n} {things}"
    question = chance.choice(
        (
            f"{name} fills {num_groups} {holders} with {size} {things} each and {change}. How many {things} are there?",
            f"There are {num_groups} {holders} of {size} {things}. {name} {change}. How many {things} are there now?",
        )
    )
    lines = [
        f"{num_groups} {holders} of {things}: {num_groups}*{size}={total}",
        f"{MORE[sign]}: {total}{sign}{n}={after}",
    ]
    return _Story(question, lines, after, f"groups {num_groups}*{size}{sign}{n}")


def _comparison(chance: random.Random) -> _Story | None:
    """One person has so many more or fewer than another; how many have both?"""
    (name, friend), (things,) = pick(NAMES, chance, 2), pick(THINGS, chance)
    first, n = chance.randint(2, 30), chance.randint(2, 15)
    sign = _draw_sign(chance)
    second = apply_sign(first, sign, n)
    if not (second >= 1 and first + second <= LARGEST):
        return None
    question = chance.choice(
        (
            f"{name} has {first} {things}. {friend} has {n} {'more' if sign == '+' else 'fewer'}. "
            f"How many {things} do both have together?",
            f"{friend} owns {n} {things} {MORE[sign]} than {name}, who owns {first}. How many {things} is that in all?",
        )
    )
    lines = [
        f"{friend} has {first}{sign}{n}={second} {things}.",
        f"both: {first}+{second}={first + second}",
    ]
    return _Story(question, lines, first + second, f"compare {first}{sign}{n}")


STORY_KINDS: tuple[Callable[[random.Random], _Story | None], ...] = (_gain_and_loss, _equal_groups, _comparison)
