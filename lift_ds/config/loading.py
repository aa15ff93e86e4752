"""The run config from a recipe (YAML) and dotted command-line overrides.

All problems are collected and reported at once: key, value, what is allowed, what to do.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from lift_ds.objectives import DEFAULT_METHOD, OBJECTIVES, all_options, methods_with
from lift_ds.objectives.settings import ObjectiveSettings
from lift_ds.section import Section, hint_at, refused_value
from lift_ds.text_files import RepeatedKeyError, load_yaml, read_text

from .run import RunConfig


class ConfigError(ValueError):
    """Everything that is wrong with a configuration, one problem a line."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        count = f"{len(problems)} problem{'s' if len(problems) != 1 else ''}"
        super().__init__(f"{count} in the configuration:\n" + "\n".join(f"  - {problem}" for problem in problems))


def load_run_config(
    recipe: Path | None,
    overrides: list[str],
    flags: dict[str, Any] | None = None,
    shown: Mapping[str, str] | None = None,
) -> tuple[RunConfig, list[str]]:
    """Resolves a recipe, flags and overrides; later ones win.

    Args:
        recipe: YAML file, or `None` for the defaults.
        overrides: `section.key=value` strings; values are read as YAML.
        flags: Values by dotted key, taken as they are.
        shown: Those of them that stand on the command line, as they stand there.

    Returns:
        The config and what is wrong with it. Wrong values are defaults in it, so that the rest can still be checked.
    """
    values, problems = read_given(recipe, overrides, flags, shown)
    config, more = resolve(values)
    return config, problems + more


def read_given(
    recipe: Path | None,
    overrides: list[str],
    flags: dict[str, Any] | None = None,
    shown: Mapping[str, str] | None = None,
) -> tuple[dict[str, Any], list[str]]:
    """What these give as nested dictionaries, not checked, and what cannot be read; see `load_run_config`."""
    values, problems = read_recipe(recipe)
    problems += find_contradictions(overrides, flags or {}, shown or {})
    for key, value in (flags or {}).items():
        problems += set_dotted(values, key, value)
    for override in overrides:
        key, sign, text = override.partition("=")
        if not sign or not key:
            problems.append(f"{override!r}: an override has the form section.key=value, for example optim.steps=300")
            continue
        value, problem = parse_value(text)
        problems += [f"{override!r}: {problem}"] if problem else set_dotted(values, key, value)
    return values, problems


def find_contradictions(overrides: list[str], flags: Mapping[str, Any], shown: Mapping[str, str]) -> list[str]:
    """Problems where a command line gives a key two values, or a section and a key in it; see `load_run_config`."""
    problems = []
    given = {key: (text, flags[key]) for key, text in shown.items()}
    for override in overrides:
        key, _, text = override.partition("=")
        value = text if key in shown else parse_value(text)[0]
        for other, (place, earlier) in given.items():
            is_inside = f"{other}.".startswith(f"{key}.") or f"{key}.".startswith(f"{other}.")
            if is_inside and not (other == key and earlier == value):
                problems.append(f"{place} and {override}: one command line gives {key} two values; remove one of them")
        given.setdefault(key, (override, value))
    return problems


def parse_value(text: str) -> tuple[Any, str]:
    """A command-line value, YAML or else a text, and what is wrong with it."""
    try:
        return load_yaml(text), ""
    except yaml.YAMLError:
        return text, ""
    except RepeatedKeyError as error:
        return text, str(error)


def resolve(values: dict[str, Any]) -> tuple[RunConfig, list[str]]:
    """The config of given values, and what is wrong with them; wrong ones are removed from `values`."""
    problems: list[str] = []
    while True:
        try:
            return RunConfig.model_validate(values), problems
        except ValidationError as error:
            problems += [line for details in error.errors() for line in describe(details, values)]
            before = copy.deepcopy(values)
            for details in error.errors():
                forget(values, details)
            if values == before:
                return RunConfig(), problems


def forget(values: dict[str, Any], details: ErrorDetails) -> None:
    """Removes what one problem of pydantic's is about."""
    location = details["loc"]
    if details["type"] != "value_error" or len(location) > 1:
        remove(values, location)
    elif not location:  # the checks between sections are about these two
        values.pop("eval", None)
        values.pop("difficulty", None)
    else:
        section = str(location[0])
        named = re.findall(rf"^{section}\.(\w+)", str(details["ctx"]["error"]), re.MULTILINE)
        keys = ["best_by", "export"] if section == "checkpoint" else named
        if "method" in keys or not keys:
            remove(values, location)
        for key in keys:
            values.get(section, {}).pop(key, None)


def remove(values: dict[str, Any], location: tuple[int | str, ...]) -> None:
    """Removes the innermost key of nested dictionaries that `location` leads to."""
    owner, key = values, location[0]
    for part in location[1:]:
        inner = owner.get(str(key))
        if not isinstance(inner, dict) or part not in inner:
            break
        owner, key = inner, part
    owner.pop(str(key), None)


def read_recipe(recipe: Path | None) -> tuple[dict[str, Any], list[str]]:
    """The values of a YAML file, and what is wrong with it."""
    if recipe is None:
        return {}, []
    try:
        loaded = load_yaml(read_text(recipe))
    except OSError as error:
        problem = f"cannot be read: {error.strerror}"
    except yaml.YAMLError as error:
        problem = f"not YAML: {error}"
    except ValueError as error:
        problem = str(error)
    else:
        if isinstance(loaded, dict):
            return loaded, []
        expected = f"holds a {type(loaded).__name__}; sections like 'optim:' are expected"
        problem = "is empty" if loaded is None else expected
    return {}, [f"--config {recipe}: {problem}"]


def set_dotted(values: dict[str, Any], key: str, value: Any) -> list[str]:
    """Sets `a.b.c` in nested dictionaries; returns what is wrong."""
    *sections, name = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            return [f"{key}: {section} is a value, not a section"]
    values[name] = value
    return []


def describe(details: ErrorDetails, values: dict[str, Any]) -> list[str]:
    """One problem of pydantic's as lines: key, value, allowed, remedy; `values` is all that was given."""
    key = ".".join(str(part) for part in details["loc"] if part not in ("str", "list[str]"))
    if details["type"] == "extra_forbidden":
        section, _, option = key.partition(".")
        methods = methods_with(option) if section == "objective" else []
        if methods:
            method = values["objective"].get("method", DEFAULT_METHOD)
            return [f"{key}={details['input']}: {method} has no such option; remove it, or use {', '.join(methods)}"]
        return [f"{key}: unknown key; {hint_at(key, known_keys(), 'see --help for all keys')}"]
    if details["type"] == "value_error":
        return str(details["ctx"]["error"]).splitlines()
    hint = ""
    if details["type"] == "string_type" and isinstance(details["input"], int | float):
        hint = """; a text that reads as a number needs quotes, on a command line '"1e5"'"""
    field = dict(walk_fields(RunConfig)).get(key)
    return [f"{refused_value(key, details)}{hint} ({field.description or '' if field else 'see --help'})"]


def walk_fields(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf key with its pydantic field, in order; of the objective, those of all methods."""
    for name, field in (all_options() if section is ObjectiveSettings else section.model_fields).items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from walk_fields(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name, field


def known_keys() -> list[str]:
    """Every dotted key."""
    return [key for key, _ in walk_fields(RunConfig)]


def explain_keys() -> str:
    """All keys with type, default and meaning, for `--help`."""
    lines = []
    for key, field in walk_fields(RunConfig):
        annotation = str(field.annotation if not isinstance(field.annotation, type) else field.annotation.__name__)
        kind = annotation.removeprefix("typing.").replace("Literal", "one of ")
        methods = methods_with(key.removeprefix("objective.")) if key.startswith("objective.") else []
        only = f" ({', '.join(methods)})" if 0 < len(methods) < len(OBJECTIVES) else ""
        lines.append(f"  {key}  ({kind}; default {field.default!r})\n      {field.description}{only}")
    return "\n".join(lines)
