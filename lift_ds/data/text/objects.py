"""Lists of objects in rows: messages, tools and tool calls, also as JSON text or as one object of lists."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from lift_ds.text_files import load_json

INVISIBLE = "\ufeff \t\r\n"  # may stand around JSON text


def holds_something(value: Any) -> bool:
    """Whether a value says anything: nulls, empty texts, lists and objects do not."""
    return value is not None and not (hasattr(value, "__len__") and len(value) == 0)


def _parsed(text: str) -> Any:
    """The value of a JSON text that stands in a row."""
    try:
        return load_json(text.strip(INVISIBLE))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def as_list(value: Any) -> Any:
    """A list of objects that stands as JSON text, or as one object of lists; what is neither stays what it is.

    Raises:
        ValueError: It begins like JSON and is none, has a key twice in one object, or its lists differ in length.
    """
    if isinstance(value, str) and value.lstrip(INVISIBLE)[:1] in ("[", "{"):
        value = _parsed(value)
    if isinstance(value, dict) and value and all(isinstance(column, list) for column in value.values()):
        if len(set(map(len, value.values()))) > 1:
            raise ValueError(f"its lists {sorted(value)} differ in length")
        value = [dict(zip(value, entries, strict=True)) for entries in zip(*value.values(), strict=True)]
    return value


def objects_of(value: Any, what: str, where: str) -> list[dict[str, Any]]:
    """A list of objects as `plain` has them; none where its JSON text is empty or says null.

    Raises:
        ValueError: It is something else.
    """
    if isinstance(value, str) and value.strip(INVISIBLE) in ("", "null"):
        return []
    try:
        listed = as_list(value)
        if isinstance(listed, list) and all(isinstance(each, dict) for each in listed):
            return [plain(each) for each in listed]
    except ValueError as error:
        raise ValueError(f"{where}: {what}: {error}.") from error
    raise ValueError(f"{where}: {what} must be a list of objects, not {str(value)[:40]!r}.")


def plain(value: Any) -> Any:
    """What JSON has, without keys that hold null: tables put them where another row's object has a key.

    Raises:
        ValueError: A value is of a type that JSON does not have; templates would write its name instead of it.
    """
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if value is not None and not isinstance(value, str | bool | int | float):
        raise ValueError(f"{str(value)[:40]!r} is of type {type(value).__name__}, which JSON has not; make it text")
    return value


def leaves_of(value: Any) -> Iterator[Any]:
    """All in a value that is neither list nor object; keys of objects too."""
    if isinstance(value, dict | list | tuple):
        for inner in [*value, *value.values()] if isinstance(value, dict) else value:
            yield from leaves_of(inner)
    else:
        yield value


def with_leaves(value: Any, change: Callable[[Any], Any]) -> Any:
    """A value with all in it changed that is neither list nor object."""
    if isinstance(value, dict):
        return {key: with_leaves(inner, change) for key, inner in value.items()}
    return [with_leaves(inner, change) for inner in value] if isinstance(value, list) else change(value)


def tools_in(value: Any, what: str, where: str) -> tuple[dict[str, Any], ...]:
    """What the assistant may call; refused where it is no list of objects, or the function of one is none."""
    tools = objects_of(value, what, where)
    for tool in tools:
        if not isinstance(tool.get("function", {}), dict):
            raise ValueError(f"{where}: {what}: the function of a tool is an object with a name, not {str(tool)[:80]}.")
    return tuple(tools)


def with_function(outer: dict[str, Any], change: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    """A tool or call with another function, which stands in it or is the object itself."""
    return {**outer, "function": change(outer["function"])} if "function" in outer else change(outer)


def as_calls(value: Any, where: str) -> list[dict[str, Any]]:
    """Tool calls as templates read them: arguments that are JSON text become what it says.

    Raises:
        ValueError: One has no function name, or arguments that are no object.
    """
    calls = objects_of(value, "tool_calls", where)
    for call in calls:
        function = call.get("function", call)
        arguments = function.get("arguments", {}) if isinstance(function, dict) else None
        problem = ""
        if isinstance(arguments, str):
            try:
                arguments = _parsed(arguments or "{}")
            except ValueError as error:
                arguments, problem = None, f" ({error})"
        if not isinstance(arguments, dict) or not isinstance(function.get("name"), str):
            raise ValueError(
                f"{where}: a tool call needs a function with a name and arguments (an object, or its JSON text), not "
                f"{str(call)[:80]}{problem}."
            )
        function["arguments"] = arguments
    return calls
