"""Text files that people write or edit, read strictly: every byte is a letter, and no key stands twice.

In YAML, as in YAML 1.2 and JSON, 5e-6 is a number, wherever a file or an override has it.
"""

from __future__ import annotations

import codecs
import os
import re
import sys
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import yaml

from lift_ds.json_text import STRICT, BadKeyError, describe_repeated

UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
EXPONENT_NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$")


class RepeatedKeyError(ValueError):
    """A key stands twice in a mapping of YAML, where all but the last value would be lost."""

    def __init__(self, repeated: list[tuple[str, int, int]]) -> None:
        """Names the keys, each with the lines where it stands first and again."""
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


def load_json(text: str) -> Any:
    """The values of a JSON text; a ValueError, or a BadKeyError where a key stands twice, which names both places."""
    try:
        return STRICT.decode(text)
    except BadKeyError as error:
        raise BadKeyError(describe_repeated(text, 0, len(text))) from error


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
