"""JSON text as Python values, and what is wrong with its keys: one that stands twice, one that is no text.

A key that stands twice would silently lose its first value. The parser counts pairs as it makes objects, which costs a
third of a microsecond each; where the key stands is looked for only when one repeats.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\]:]')
BLANKS = " \t\r\n"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
BETWEEN_ELEMENTS = re.compile(r"[\s,]*")


class BadKeyError(ValueError):
    """An object has one key twice, or a key that is no text."""


def as_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of its pairs; a BadKeyError where a key repeats."""
    values = dict(pairs)
    if len(values) != len(pairs):
        raise BadKeyError
    return values


STRICT = json.JSONDecoder(object_pairs_hook=as_object)
LENIENT = json.JSONDecoder()


def parse_line(line: bytes) -> Any:
    """The value of a line of JSON in UTF-8, with or without a byte order mark.

    Raises:
        BadKeyError: A key stands twice in an object, which the message names with both places, or is no text.
        ValueError: It is not JSON, or not UTF-8.
        RecursionError: It is nested too deeply.
    """
    text = str(line.removeprefix(BYTE_ORDER_MARK), "utf-8").strip(BLANKS)
    try:
        value, end = STRICT.raw_decode(text)
    except BadKeyError as error:
        raise BadKeyError(describe_repeated(text, 0, len(text))) from error
    if end != len(text):
        raise json.JSONDecodeError("Extra data", text, end)
    problem = why_no_text(value)
    if problem is not None:
        raise BadKeyError(problem)
    return value


def parse_elements(text: str) -> list[tuple[Any, str | None]]:
    """The elements of a list, each with what is wrong with its keys, or `None`.

    Raises:
        TypeError: It is no list.
        ValueError: It is not JSON.
        RecursionError: It is nested too deeply.
    """
    try:
        loaded = STRICT.decode(text)
        has_repeated = False
    except BadKeyError:
        loaded = LENIENT.decode(text)
        has_repeated = True
    if not isinstance(loaded, list):
        raise TypeError(f"holds a {type(loaded).__name__}; a .json file must hold a list of objects.")
    if not has_repeated:
        return [(value, why_no_text(value)) for value in loaded]
    repeated = [why_repeated(text, *ends) for ends in element_ends(text)]
    return [(value, problem or why_no_text(value)) for value, problem in zip(loaded, repeated, strict=True)]


def element_ends(text: str) -> Iterator[tuple[int, int]]:
    """Where each element of a valid list begins and ends."""
    position = text.index("[") + 1
    while True:
        position = BETWEEN_ELEMENTS.match(text, position).end()  # type: ignore[union-attr]
        if text[position] == "]":
            return
        start, position = position, LENIENT.raw_decode(text, position)[1]
        yield start, position


def why_repeated(text: str, start: int, end: int) -> str | None:
    """What is wrong with an element of a list in which some key repeats; `None` where it is another's."""
    try:
        STRICT.raw_decode(text, start)
    except BadKeyError:
        return describe_repeated(text, start, end)
    return None


def describe_repeated(text: str, start: int, end: int) -> str:
    """Which key of a part of a JSON text stands twice in one object, and where."""
    key, *offsets = find_repeated(text, start, end)
    places = " and ".join(place(text, offset) for offset in offsets)
    return f"the key {key!r} stands twice in one object, at {places}; only one value can be meant, remove the other"


def find_repeated(text: str, start: int, end: int) -> tuple[str, int, int]:
    """The first key that stands twice in one object of valid JSON, and at which characters it does."""
    open_parts: list[dict[str, int]] = []
    text_before = ""
    for token in TOKEN.finditer(text, start, end):
        kind = token[0][0]
        if kind in "{[":
            open_parts.append({})
        elif kind in "}]":
            open_parts.pop()
        elif kind == '"':
            text_before, offset = token[0], token.start()
        else:
            key = json.loads(text_before)
            if key in open_parts[-1]:
                return key, open_parts[-1][key], offset
            open_parts[-1][key] = offset
    raise AssertionError("no key repeats")


def place(text: str, offset: int) -> str:
    """The number of a character, counted from 1 in its line, with the line where there are several."""
    line_start = text.rfind("\n", 0, offset) + 1
    number = f"character {offset - line_start + 1}"
    return f"line {text.count(chr(10), 0, offset) + 1} {number}" if "\n" in text.strip() else number


def why_no_text(value: Any) -> str | None:
    """Which key of an object has a lone surrogate, which nothing can print; texts are judged in use."""
    if not isinstance(value, dict) or "".join(value).isascii():
        return None
    for key in value:
        if any("\ud800" <= character <= "\udfff" for character in key):
            return f"the key {key!r} has a lone surrogate, which is no text; repair it"
    return None
