"""The fields of a family's config: defaults, those that must be there, and values that are refused or said."""

from __future__ import annotations

import warnings
from typing import Any, ClassVar

from transformers import PretrainedConfig


class MaskedDiffusionConfig(PretrainedConfig):
    """Configuration of a family, with its public field names; values that are not computed here are refused.

    Args:
        **kwargs: The fields. Those that have no default are kept as they are, and written back on export.

    Attributes:
        defaults: What fields are where a config does not have them.
        supported: What other fields may be, if they are there.
        unread: What fields say that the public code never reads, where they say what it computes; else a warning.

    Raises:
        ValueError: A field asks for a variant that is not implemented here.
    """

    defaults: ClassVar[dict[str, Any]] = {}
    supported: ClassVar[dict[str, tuple[Any, ...]]] = {}
    unread: ClassVar[dict[str, tuple[Any, ...]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        cls.__init__ = cls.__init__  # type: ignore[method-assign]  # else transformers 5 writes one
        super().__init_subclass__(**kwargs)

    def __init__(self, **kwargs: Any) -> None:
        refuse_values(self.model_type, kwargs, self.supported)
        say_unread(self.model_type, kwargs, self.unread)
        for name, default in self.defaults.items():
            setattr(self, name, kwargs.pop(name, default))
        super().__init__(**{"tie_word_embeddings": False} | kwargs)  # transformers 4 ties where nothing is said


def say_unread(model_type: str, values: dict[str, Any], computed: dict[str, tuple[Any, ...]]) -> None:
    """Warns of fields that are not read and say something else than what is computed, the first of each tuple."""
    for name, choices in computed.items():
        if name in values and values[name] not in choices:
            warnings.warn(
                f"{model_type} config: {name}={values[name]!r} is not read, by the public code neither; what is "
                f"computed is {choices[0]!r}.",
                stacklevel=3,
            )


def require_fields(model_type: str, values: dict[str, Any], names: tuple[str, ...]) -> None:
    """Asks for config fields that have no default here.

    Raises:
        ValueError: One is missing.
    """
    missing = [name for name in names if values.get(name) is None]
    if missing:
        raise ValueError(
            f"{model_type} config: {', '.join(missing)}: missing. What the public code takes where they are not there "
            "is another model; write the model's own into config.json."
        )


def refuse_values(model_type: str, values: dict[str, Any], allowed: dict[str, tuple[Any, ...]]) -> None:
    """Refuses config fields that ask for a variant which is not computed here.

    Raises:
        ValueError: A field that is given has another value than those allowed.
    """
    for name, choices in allowed.items():
        if name in values and values[name] not in choices:
            raise ValueError(f"{model_type} config: {name}={values[name]!r} is not implemented; allowed: {choices}.")
