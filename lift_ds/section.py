"""What every part of the configuration is: frozen, strict, and sure of its keys."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict
from pydantic_core import ErrorDetails


class Section(BaseModel):
    """A frozen part of the config that knows all its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=True)


def refused_value(key: str, details: ErrorDetails) -> str:
    """A value that pydantic refused, in our words: its key, itself, what is wrong with it."""
    return f"{key}={details['input']!r}: {details['msg'][0].lower()}{details['msg'][1:]}"
