"""Text, JSON and YAML that people write or edit, read strictly: every byte is a letter, and no key stands twice.

A key that stands twice would silently lose its first value. JSON's parser counts pairs as it makes objects, which costs
a third of a microsecond each; where the key stands is looked for only when one repeats. In YAML, as in YAML 1.2 and
JSON, 5e-6 is a number, wherever a file or an override has it.
"""

from __future__ import annotations

import codecs
import json
import os
import re
import sys
from collections.abc import Iterator
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import yaml

TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\]:]')
BLANKS = " \t\r\n"
BYTE_ORDER_MARK = codecs.BOM_UTF8
BETWEEN_ELEMENTS = re.compile(r"[\s,]*")
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
EXPONENT_NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$")


class RepeatedKeyError(ValueError):
    """A key stands twice in a mapping of YAML, where all but the last value would be lost."""

    def __init__(self, repeated: list[tuple[str, int, int]]) -> None:
        places = ", ".join(f"{key!r} in line {first} and again in line {again}" for key, first, again in repeated)
        super().__init__(f"a key stands twice, and only the last would count: {places}; keep one, or join them")


def check_locale() -> None:
    """Whether names of files and what is printed are UTF-8, as libraries take them to be; output never fails of it.

    Raises:
        RuntimeError: They are not, and a name on the command line or the working folder needs it.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper) and stream.encoding.lower() != "utf-8":
            stream.reconfigure(errors="backslashreplace")
    encoding = sys.getfilesystemencoding()
    if encoding != "utf-8":
        for word in (*sys.argv[1:], os.getcwd()):
            if not word.isascii():
                raise RuntimeError(
                    f"{word!r}: this locale's encoding of file names is {encoding}; set PYTHONUTF8=1, or LC_ALL=C.UTF-8"
                )


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, without a byte order mark.

    Raises:
        ValueError: It is in another encoding; the message names line and byte, not the file.
        OSError: It cannot be read.
    """
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        encoding = "UTF-16" if content.startswith(UTF_16) else "CP1252"
        raise ValueError(
            f"line {line}: byte {error.start + 1} of the file (0x{content[error.start]:02x}) is no UTF-8; save it as "
            f"UTF-8, perhaps with: iconv -f {encoding} -t UTF-8"
        ) from error


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


def load_json(text: str) -> Any:
    """The values of a JSON text; a ValueError, or a BadKeyError where a key stands twice, which names both places."""
    try:
        return STRICT.decode(text)
    except BadKeyError as error:
        raise BadKeyError(describe_repeated(text, 0, len(text))) from error


def parse_line(line: bytes) -> Any:
    """The value of a line of JSON in UTF-8, with or without a byte order mark.

    Raises:
        BadKeyError: A key stands twice in an object, which the message names with both places, or is no text.
        ValueError: It is not JSON, or not UTF-8.
        RecursionError: It is nested too deeply.
    """
    value = load_json(str(line.removeprefix(BYTE_ORDER_MARK), "utf-8").strip(BLANKS))
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
        loaded, has_repeated = STRICT.decode(text), False
    except BadKeyError:
        loaded, has_repeated = LENIENT.decode(text), True
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


class NumberLoader(yaml.SafeLoader):
    """PyYAML's safe loader, which keeps the last of equal keys; and YAML 1.1 takes 5e-6 and 1.5e3 for strings."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.repeated: list[tuple[str, int, int]] = []

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """A mapping as it is written; what `<<` takes over is no repetition."""
        node = super().compose_mapping_node(anchor)
        first_lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                name, line = (key.tag, key.value), key.start_mark.line + 1
                if name in first_lines:
                    self.repeated.append((key.value, first_lines[name], line))
                first_lines.setdefault(name, line)
        return node


NumberLoader.add_implicit_resolver("tag:yaml.org,2002:float", EXPONENT_NUMBER, list("-+.0123456789"))


def load_yaml(text: str) -> Any:
    """The values of a YAML text; a YAMLError, or a RepeatedKeyError where a key stands twice."""
    loader = NumberLoader(text)
    try:
        loaded = loader.get_single_data()
    finally:
        loader.dispose()
    if loader.repeated:
        raise RepeatedKeyError(loader.repeated)
    return loaded
