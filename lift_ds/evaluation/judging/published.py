r"""Where the published evaluation finds answers, and what it calls equal text; its faults included.

Source: d1's `eval/parse_and_get_acc.py` and `parser_helper.py`, which LIFT's `eval/scoring.py` repeats.

Known faults, kept here and absent from the strict scorers:
- an unclosed `\boxed{` hides every box before it, and so does `\boxed ` with a space, which also swallows all text up
  to the next dollar sign;
- a text without a box is compared whole;
- percent signs, dollar signs and everything after the first `\text{ ` are dropped, so 5 and 5\% are equal;
- text that a rule stumbles on (`x/2`, a bare `\sqrt`) is compared as it stands.

Differs: the searches are linear in the length of the text, where the published regular expressions are not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

DELETED = ("\\left", "\\right", "^{\\circ}", "^\\circ", "\\$")


def between(text: str, opening: str, closing: str) -> Iterator[str]:
    """The pieces between `opening` and the next `closing`, from left to right."""
    position = 0
    while (start := text.find(opening, position)) >= 0:
        start += len(opening)
        end = text.find(closing, start)
        if end < 0:
            return
        yield text[start:end]
        position = end + len(closing)


def first_answer_tag(text: str) -> str | None:
    """What stands in the first closed answer tag, stripped."""
    return next((tagged.strip() for tagged in between(text, "<answer>", "</answer>")), None)


def last_box(text: str) -> str | None:
    r"""What the published code takes out of the last `\boxed{...}` (or `\fbox`, with its command).

    It takes the whole text where there is none, and nothing, `None`, where the last one is not closed.
    """
    if "\\boxed " in text:
        return text.split("\\boxed ")[-1].split("$")[0]
    start = text.rfind("\\boxed" if "\\boxed" in text else "\\fbox")
    if start < 0:
        return text
    end = closing_brace(text, start)
    if end is None:
        return None
    box = text[start : end + 1]
    return box[len("\\boxed{") : -1] if box.startswith("\\boxed{") else box


def closing_brace(text: str, start: int) -> int | None:
    """Place of the brace that brings the count of open braces, begun at `start`, back to zero; `None` without one.

    Differs: a closing brace before any opening one is passed over here as there.
    """
    depth = 0
    for brace in re.compile(r"[{}]").finditer(text, start):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0 and brace[0] == "}":
            return brace.start()
    return None


def is_same_text(answer: str, truth: str) -> bool:
    """Whether both are the same after the published clean-up, or as they stand where the clean-up gives up."""
    try:
        return cleaned(answer) == cleaned(truth)
    except ValueError:
        return answer == truth


def cleaned(text: str) -> str:
    r"""The published clean-up of a LaTeX answer: spacing, `\left`, degrees, units, percent signs, `a/b` as a fraction.

    A ValueError where a rule does not apply to what it found: the published code stumbles there.
    """
    text = text.replace("\n", "").replace("\\!", "")
    text = text.replace("\\\\", "\\").replace("tfrac", "frac").replace("dfrac", "frac")
    for piece in DELETED:
        text = text.replace(piece, "")
    text, *rest = text.split("\\text{ ")
    if len(rest) > 1:
        raise ValueError("more than one unit")
    text = text.replace("\\%", "").replace(" .", " 0.").replace("{.", "{0.")
    if text.startswith("."):
        text = "0" + text
    name, equals, value = text.partition("=")
    if equals and "=" not in value and len(name) <= 2:
        text = value
    text = braced_fractions(braced_roots(text).replace(" ", ""))
    return fraction_of_integers("\\frac{1}{2}" if text == "0.5" else text)


def braced_roots(text: str) -> str:
    r"""`\sqrt3` as `\sqrt{3}`."""
    first, *rest = text.split("\\sqrt")
    if "" in rest:
        raise ValueError("a root of nothing")
    return first + "".join("\\sqrt" + (part if part[0] == "{" else f"{{{part[0]}}}{part[1:]}") for part in rest)


def braced_fractions(text: str) -> str:
    r"""`\frac12` and `\frac1{2}` as `\frac{1}{2}`; the text as it is where one has no two characters after it."""
    _, *rest = text.split("\\frac")
    if "" in rest:
        raise ValueError("a fraction of nothing")
    if any(len(part) < 2 and part != "{" for part in rest):
        return text
    text = re.sub(r"\\frac([^{])([^{])", r"\\frac{\1}{\2}", text)
    return re.sub(r"\\frac([^{])(?=\{)", r"\\frac{\1}", text)


def fraction_of_integers(text: str) -> str:
    r"""`3/4` as `\frac{3}{4}`; one slash between anything else is an error, as `x/2` is in the published code."""
    if text.count("/") != 1:
        return text
    above, below = (int(side) for side in text.split("/"))
    return f"\\frac{{{above}}}{{{below}}}" if text == f"{above}/{below}" else text
