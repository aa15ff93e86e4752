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
        required: Fields that a config must have: what the public code takes for them instead is another model.
        supported: What other fields may be, if they are there.
        unread: What fields say that the public code never reads, where they say what it computes; else a warning.

    Raises:
        ValueError: A field asks for a variant that is not implemented here, or is missing.
    """

    defaults: ClassVar[dict[str, Any]] = {}
    required: ClassVar[tuple[str, ...]] = ()
    supported: ClassVar[dict[str, tuple[Any, ...]]] = {}
    unread: ClassVar[dict[str, tuple[Any, ...]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        cls.__init__ = cls.__init__  # type: ignore[method-assign]  # else transformers 5 writes one
        super().__init_subclass__(**kwargs)

    def __init__(self, **kwargs: Any) -> None:
        missing = [name for name in self.required if kwargs.get(name) is None]
        if missing:
            raise ValueError(f"{self.model_type} config: {', '.join(missing)} must be there; it has no default.")
        refuse_values(self.model_type, kwargs, self.supported)
        for name, values in self.unread.items():
            if name in kwargs and kwargs[name] not in values:
                warnings.warn(
                    f"{self.model_type} config: {name}={kwargs[name]!r} is not read, by the public code neither; "
                    f"what is computed is {name}={values[0]!r}.",
                    stacklevel=2,
                )
        for name, default in self.defaults.items():
            setattr(self, name, kwargs.pop(name, default))
        super().__init__(**{"tie_word_embeddings": False} | kwargs)  # transformers 4 ties where nothing is said


def refuse_values(model_type: str, values: dict[str, Any], allowed: dict[str, tuple[Any, ...]]) -> None:
    """Refuses config fields that ask for a variant which is not computed here.

    Raises:
        ValueError: A field that is given has another value than those allowed.
    """
    for name, choices in allowed.items():
        if name in values and values[name] not in choices:
            raise ValueError(f"{model_type} config: {name}={values[name]!r} is not implemented; allowed: {choices}.")
