"""What every part of the configuration is: frozen, strict, and sure of its keys."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic_core import ErrorDetails


class Section(BaseModel):
    """A frozen part of the config that knows all its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=True)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries by dotted key."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def refused_value(key: str, details: ErrorDetails) -> str:
    """A value that pydantic refused, in our words: its key, itself, what is wrong with it."""
    return f"{key}={details['input']!r}: {details['msg'][0].lower()}{details['msg'][1:]}"


def hint_at(word: str, known: Collection[str], otherwise: str) -> str:
    """`did you mean optim.lr?` for a word that is spelt nearly so, or what helps otherwise."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else otherwise
