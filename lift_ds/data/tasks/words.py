"""Words of the word problems, most frequent first: draws follow Zipf's law, so that common and rare words exist."""

from __future__ import annotations

import random
from itertools import accumulate

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


def pick(words: list[str], chance: random.Random, count: int = 1) -> list[str]:
    """Draws `count` different words, word number r (from 0) with weight 1 / (r + 2)."""
    drawn: list[str] = []
    while len(drawn) < count:
        word = chance.choices(words, cum_weights=CUMULATIVE[len(words)])[0]
        if word not in drawn:
            drawn.append(word)
    return drawn
