"""Arithmetic word problems of one or two steps, in few or many wordings, each step worked out in words and numbers."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

from .countdown import apply_sign
from .item import Item, Verdict, judge_number

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

NUM_FEW = 12
CUMULATIVE = {
    count: list(accumulate(1.0 / (rank + 2) for rank in range(count)))
    for count in (NUM_FEW, *map(len, (NAMES, THINGS, PLACES, HOLDERS, DAYS)))
}

LARGEST = 99
MORE = {"+": "more", "-": "less"}


@dataclass(frozen=True)
class Wording:
    """How stories of gains and losses are told, and how large their numbers are."""

    names: list[str]
    things: list[str]
    starts: tuple[str, ...]
    gains: tuple[str, ...]
    losses: tuple[str, ...]
    joins: tuple[str, ...]
    asks: tuple[str, ...]
    largest_change: int


FEW = Wording(
    names=NAMES[:NUM_FEW],
    things=THINGS[:NUM_FEW],
    starts=("{name} has {n} {things}.",),
    gains=("buys {n} more", "finds {n} more"),
    losses=("loses {n}", "sells {n}"),
    joins=("{name} {first}. Then {name} {second}.",),
    asks=("How many {things} does {name} have now?",),
    largest_change=9,
)
MANY = Wording(
    names=NAMES,
    things=THINGS,
    starts=(
        "{name} has {n} {things}.",
        "On {day} {name} has {n} {things}.",
        "{name} keeps {n} {things} at the {place}.",
        "There are {n} {things} in the bag of {name}.",
    ),
    gains=("buys {n} more", "finds {n} more", "gets {n} more from {friend}", "picks {n} more", "wins {n} more"),
    losses=("gives {n} to {friend}", "loses {n}", "sells {n}", "breaks {n}", "leaves {n} at the {place}"),
    joins=(
        "{name} {first} and {second}.",
        "{name} {first}. Then {name} {second}.",
        "First {name} {first}, later {name} {second}.",
    ),
    asks=(
        "How many {things} does {name} have now?",
        "How many {things} are left for {name}?",
        "Count the {things} of {name}.",
    ),
    largest_change=20,
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

    things: str
    question: str
    lines: list[str]
    result: int
    numbers: str


class Arithmetic:
    """Stories about things that are gained, lost, shared out in equal groups, or compared.

    Strata: the number of `steps`, and `thing_rank`, how many names of things are more frequent than the story's.
    """

    name = "arithmetic"
    levels = ("1 step", "2 steps", "2 steps, many words")

    def propose(self, chance: random.Random, level: int) -> Item:
        """Draws one of the level's kinds of story; every intermediate result lies between 1 and 99."""
        while True:
            story = chance.choice(STORY_KINDS[level - 1])(chance)
            if story is not None:
                break
        response = "\n".join((*story.lines, f"<answer>{story.result}</answer>"))
        strata = {"steps": min(level, 2), "thing_rank": THINGS.index(story.things)}
        key = f"arithmetic {story.numbers} {story.result}"
        return Item(self.name, story.question, response, key, level, strata)

    def verify(self, key: str, generation: str) -> Verdict:
        """Right where the answer is the expected integer, written in digits; anything but digits is unparsed."""
        return judge_number(int(key.rsplit(" ", 1)[1]), generation)


def _draw_sign(chance: random.Random) -> str:
    return "+" if chance.random() < 0.5 else "-"


def _changes(chance: random.Random, wording: Wording, num_steps: int) -> _Story | None:
    """So many things, then gains or losses."""
    (name, friend), (things,) = pick(wording.names, chance, 2), pick(wording.things, chance)
    (place,), (day,) = pick(PLACES, chance), pick(DAYS, chance)
    amount = start = chance.randint(2, 40)
    phrases, lines, changes = [], [f"{name} starts with {start} {things}."], ""
    for _ in range(num_steps):
        sign, n = _draw_sign(chance), chance.randint(2, wording.largest_change)
        after = apply_sign(amount, sign, n)
        if not 1 <= after <= LARGEST:
            return None
        phrase = chance.choice(wording.gains if sign == "+" else wording.losses)
        phrases.append(phrase.format(n=n, friend=friend, place=place))
        lines.append(f"{MORE[sign]}: {amount}{sign}{n}={after}")
        changes += f"{sign}{n}"
        amount = after
    first = chance.choice(wording.starts).format(name=name, n=start, things=things, place=place, day=day)
    join = "{name} {first}." if num_steps == 1 else chance.choice(wording.joins)
    middle = join.format(name=name, first=phrases[0], second=phrases[-1])
    ask = chance.choice(wording.asks).format(name=name, things=things)
    return _Story(things, f"{first} {middle} {ask}", lines, amount, f"change {start}{changes}")


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
    return _Story(things, question, lines, after, f"groups {num_groups}*{size}{sign}{n}")


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
    return _Story(things, question, lines, first + second, f"compare {first}{sign}{n}")


STORY_KINDS: tuple[tuple[Callable[[random.Random], _Story | None], ...], ...] = (
    (partial(_changes, wording=FEW, num_steps=1),),
    (partial(_changes, wording=FEW, num_steps=2),),
    (partial(_changes, wording=MANY, num_steps=2), _equal_groups, _comparison),
)
