"""What every part of the configuration is: frozen, strict, and sure of its keys."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A frozen part of the config that knows all its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=True)
