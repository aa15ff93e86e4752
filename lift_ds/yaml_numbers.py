"""YAML as every file and override here is read: 5e-6 is a number, as YAML 1.2 and JSON have it."""

from __future__ import annotations

import re
from typing import Any

import yaml

EXPONENT_NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$")


class NumberLoader(yaml.SafeLoader):
    """PyYAML's safe loader; YAML 1.1 takes 5e-6 and 1.5e3 for strings: it wants a dot and a signed exponent."""


NumberLoader.add_implicit_resolver("tag:yaml.org,2002:float", EXPONENT_NUMBER, list("-+.0123456789"))


def load_yaml(text: str) -> Any:
    """The values of a YAML text; what stands in quotes is a string.

    Raises:
        yaml.YAMLError: It is none.
    """
    return yaml.load(text, Loader=NumberLoader)
