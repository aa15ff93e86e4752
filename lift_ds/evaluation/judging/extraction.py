r"""Where the strict scorers find an answer: the last closed `\boxed{}` or `<answer>` tag of the model's turn.

An unclosed or empty box or tag is no answer and hides none. Of nested boxes the innermost counts, of a tag with boxes
its last box, if any is closed. A text with neither has no answer: a number that stands somewhere is none.
"""

from __future__ import annotations

import re
from itertools import pairwise

END_OF_TURN = re.compile(r"<\|eot_id\|>|<\|endoftext\|>|<\|im_end\|>")
MARK = re.compile(r"\\(?:boxed|fbox)\s*\{|\\[{}\\]|[{}]|<answer>|</answer>")
BOX = re.compile(r"\\(?:boxed|fbox)")
TAG = "<answer>"


def own_turn(text: str) -> str:
    """The text up to the first token that ends a turn."""
    return END_OF_TURN.split(text, maxsplit=1)[0]


def final_answer(text: str) -> str | None:
    """What stands in the last closed box or tag that is not empty, stripped; `None` where there is none.

    A tag with a box in it is no answer of its own: its box is one, if it is closed.
    """
    turn = own_turn(text)
    boxes, tags = ([span for span in spans if turn[slice(*span)].strip()] for spans in closed_places(turn))
    # a box ends right after the last one in it: one that begins after its predecessor has none
    places = [box for before, box in pairwise([(-1, -1), *boxes]) if before[0] < box[0]][-1:]
    places += [tag for tag in tags if not BOX.search(turn, *tag)][-1:]
    return turn[slice(*max(places))].strip() if places else None


def closed_places(text: str) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Where the contents of closed boxes and of closed tags begin and end, each in the order of their ends.

    A tag ends all braces that are open inside it: they belong to nothing after it.
    """
    boxes: list[tuple[int, int]] = []
    tags: list[tuple[int, int]] = []
    braces: list[tuple[int, bool]] = []
    tag_start: int | None = None
    for mark in MARK.finditer(text):
        if mark[0] == TAG:
            tag_start, braces = mark.end(), []
        elif mark[0] == "</answer>":
            if tag_start is not None:
                tags.append((tag_start, mark.start()))
            tag_start, braces = None, []
        elif mark[0] == "}" and braces:
            start, is_box = braces.pop()
            if is_box:
                boxes.append((start, mark.start()))
        elif mark[0].endswith("{") and mark[0] != "\\{":
            braces.append((mark.end(), mark[0] != "{"))
    return boxes, tags
