"""Objectives: each decides what the model sees and learns. The table is all that the rest of the package knows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic.fields import FieldInfo

from lift_ds.data.batch import collate, stand_in

from .gift import Gift
from .lift import Lift2, Lift3, RandomKept, Single
from .objective import Objective
from .settings import ObjectiveSettings
from .vanilla import Vanilla

OBJECTIVES: dict[str, type[Objective]] = {
    "vanilla": Vanilla,
    "lift2": Lift2,
    "lift3": Lift3,
    "easy": Single,
    "hard": Single,
    "random": RandomKept,
    "gift": Gift,
}
DEFAULT_METHOD = "lift3"


def objective_settings(method: str = DEFAULT_METHOD, **options: Any) -> ObjectiveSettings:
    """Checked settings of a method, from keys of the config's `objective` section.

    Raises:
        ValueError: The method is unknown, or has no such option or value.
    """
    return settings_of({"method": method, **options})


def settings_of(values: Mapping[Any, Any]) -> ObjectiveSettings:
    """The same of values that may be anything, as files have them."""
    method = values.get("method", DEFAULT_METHOD)
    if not isinstance(method, str) or method not in OBJECTIVES:
        raise ValueError(f"objective.method={method!r}: unknown; allowed: {', '.join(OBJECTIVES)}")
    return OBJECTIVES[method].settings_type.model_validate({**values, "method": method})


def read_settings(values: Mapping[Any, Any] | ObjectiveSettings) -> ObjectiveSettings:
    """The `objective` section of a config.

    Raises:
        ValueError: As `objective_settings`; or the normaliser counts what the objective does not know beforehand.
    """
    settings = values if isinstance(values, ObjectiveSettings) else settings_of(values)
    if settings.normalizer != "masked_tokens":
        return settings
    document, noise = stand_in(pad_token_id=0)
    if make_objective(settings).num_targets(collate([document], [noise], pad_token_id=0)) is None:
        raise ValueError(
            f"objective.normalizer=masked_tokens: {settings.method} has no mask before its forward; use another"
        )
    return settings


def make_objective(settings: ObjectiveSettings) -> Objective:
    """The objective that the settings name."""
    return OBJECTIVES[settings.method](settings)


def all_options() -> dict[str, FieldInfo]:
    """The options of all methods."""
    options = dict(ObjectiveSettings.model_fields)
    for kind in OBJECTIVES.values():
        options |= {name: field for name, field in kind.settings_type.model_fields.items() if name not in options}
    return options


def methods_with(option: str) -> list[str]:
    """Methods that have an option."""
    return [method for method, kind in OBJECTIVES.items() if option in kind.settings_type.model_fields]
