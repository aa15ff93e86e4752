"""Objectives: each decides what the model sees and learns. The table is all that the rest of the package knows."""

from __future__ import annotations

from .gift import Gift
from .lift import Easy, Hard, Lift2, Lift3, RandomKept
from .objective import Objective
from .settings import ObjectiveConfig
from .vanilla import Vanilla

OBJECTIVES: dict[str, type[Objective]] = {
    "vanilla": Vanilla,
    "lift2": Lift2,
    "lift3": Lift3,
    "easy": Easy,
    "hard": Hard,
    "random": RandomKept,
    "gift": Gift,
}

READ_WITH = {
    "cart_p": ("token_weight", ("cart",)),
    "mgdm_alpha": ("token_weight", ("mgdm",)),
    "mgdm_gamma": ("token_weight", ("mgdm",)),
    "refresh_share": ("scoring", ("buffer", "hybrid")),
    "warm_start_steps": ("scoring", ("buffer", "hybrid")),
    "scoring_precision": ("scoring", ("exact", "buffer", "hybrid")),
}


def make_objective(settings: ObjectiveConfig) -> Objective:
    """The objective that the config names."""
    return OBJECTIVES[settings.method](settings)


def find_objective_problems(settings: ObjectiveConfig, has_buffers: bool = True) -> list[str]:
    """Options that the method does not have, and combinations that mean nothing; one line each."""
    kind = OBJECTIVES.get(settings.method)
    if kind is None:
        return [f"objective.method={settings.method!r}: unknown; allowed: {', '.join(OBJECTIVES)}"]
    optional = sorted(frozenset().union(*(each.options for each in OBJECTIVES.values())))
    changed = {name for name, field in ObjectiveConfig.model_fields.items() if getattr(settings, name) != field.default}
    problems = [
        f"objective.{name}={getattr(settings, name)}: {settings.method} has no such option; remove it, or use "
        + ", ".join(method for method, each in OBJECTIVES.items() if name in each.options)
        for name in optional
        if name in changed and name not in kind.options
    ]
    if settings.complementary and settings.scoring == "approximate":
        problems.append("objective.complementary: scoring=approximate has no mask before its forward; use exact")
    if settings.method == "gift" and settings.normalizer == "masked_tokens":
        problems.append("objective.normalizer=masked_tokens: gift has no mask before its forward; use another")
    problems += [
        f"objective.{name}={getattr(settings, name)}: only read with objective.{key}={' or '.join(values)}"
        for name, (key, values) in READ_WITH.items()
        if getattr(settings, name) != ObjectiveConfig.model_fields[name].default
        and getattr(settings, key) not in values
    ]
    if kind(settings).reads_difficulty and not has_buffers:
        problems.append(f"objective.scoring={settings.scoring} needs difficulty.enabled=true")
    return problems
