"""YAML as every file and override here is read: 5e-6 is a number, as in YAML 1.2 and JSON, and no key stands twice."""

from __future__ import annotations

import re
from typing import Any

import yaml

from lift_ds.text_files import RepeatedKeyError

EXPONENT_NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$")


class NumberLoader(yaml.SafeLoader):
    """PyYAML's safe loader, which keeps the last of equal keys; and YAML 1.1 takes 5e-6 and 1.5e3 for strings."""

    def __init__(self, text: str) -> None:
        """Begins without repeated keys."""
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
    """The values of a YAML text; what stands in quotes is a string.

    Raises:
        RepeatedKeyError: A key stands twice in a mapping.
        yaml.YAMLError: It is none.
    """
    loader = NumberLoader(text)
    try:
        loaded = loader.get_single_data()
    finally:
        loader.dispose()
    if loader.repeated:
        raise RepeatedKeyError(loader.repeated)
    return loaded
