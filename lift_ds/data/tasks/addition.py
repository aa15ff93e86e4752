"""Addition of two numbers, column by column; how hard it is follows from how far carries run."""

from __future__ import annotations

import random

from .item import Item, Verdict, judge_number

# Sums of smaller numbers occur in the steps of other tasks and in the base's text, where test items would be solved.
FEWEST_DIGITS, MOST_DIGITS = 3, 4
QUESTION = "Add {first} and {second}."
Column = tuple[int, ...]  # a digit of each number, and the carry that comes in; none comes into the first column


class Addition:
    """Two numbers of three or four digits each, added from the units on; every column's sum is written with two digits.

    Strata: `carry_chain`, the longest run of columns that carry into the next one, and the number of `digits`.
    """

    name = "addition"
    levels = ("no carry", "lone carries", "2 carries in a row", "3+ carries in a row")

    def propose(self, chance: random.Random, level: int) -> Item:
        """Draws as many digits as carries need, then numbers until their carries are of the level."""
        num_digits = chance.randint(max(FEWEST_DIGITS, level - 1), MOST_DIGITS)
        while True:
            first, second = (chance.randrange(10 ** (num_digits - 1), 10**num_digits) for _ in range(2))
            chain = carry_chain(first, second)
            if min(chain, len(self.levels) - 1) == level - 1:
                break
        lines = (f"{as_line(column)}\n" for column in columns(first, second))
        response = f"{''.join(lines)}<answer>{first + second}</answer>"
        strata = {"carry_chain": chain, "digits": num_digits}
        question = QUESTION.format(first=first, second=second)
        return Item(self.name, question, response, addition_key(first, second), level, strata)

    def verify(self, key: str, generation: str) -> Verdict:
        """Right where the answer is the sum, written in digits; anything but digits is unparsed."""
        return judge_number(sum(map(int, key.split()[1:])), generation)


def addition_key(first: int, second: int) -> str:
    """What makes two items the same: the numbers in any order."""
    return f"addition {min(first, second)} {max(first, second)}"


def columns(first: int, second: int) -> list[Column]:
    """The columns of two numbers with equally many digits, units first."""
    found: list[Column] = []
    for digits in zip(map(int, reversed(str(first))), map(int, reversed(str(second))), strict=True):
        found.append((*digits, sum(found[-1]) // 10) if found else digits)
    return found


def as_line(column: Column) -> str:
    """A column with its sum: `6+8=14`, or `6+7,1=14` with a carry, as `6+7+1` would solve an item of Countdown."""
    a, b, *carry = column
    return f"{','.join([f'{a}+{b}', *map(str, carry)])}={sum(column):02d}"


def carry_chain(first: int, second: int) -> int:
    """The longest run of neighbouring columns that carry into the next: 2 for 157+168, where 7+8 and 5+6+1 do."""
    longest = run = 0
    for column in columns(first, second):
        run = run + 1 if sum(column) > 9 else 0
        longest = max(longest, run)
    return longest
