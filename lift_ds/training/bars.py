"""Numbers as bars of text, for terminals."""

from __future__ import annotations

import itertools

from rich.text import Text

BLOCKS = " ▁▂▃▄▅▆▇█"
COMPONENT_COLORS = {"easy": "green", "random": "yellow", "hard": "red"}


def sparkline(values: list[float], width: int) -> str:
    """Values as bars of eight heights; averaged down to `width` columns where it is positive."""
    if width and len(values) > width:
        edges = [len(values) * column // width for column in range(width + 1)]
        values = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    top, bottom = max(values), min(values)
    span = (top - bottom) or 1.0
    return "".join(BLOCKS[1 + int((value - bottom) / span * 7)] for value in values)


def shares_bar(shares: dict[str, float], width: int = 30) -> Text:
    """Shares of the components, which add up to 1: as parts of a bar, and as numbers."""
    bar = Text()
    for name, share in shares.items():
        bar.append("█" * round(share * width), COMPONENT_COLORS[name])
    for name, share in shares.items():
        bar.append(f" {name} {share:.0%}", COMPONENT_COLORS[name])
    return bar
