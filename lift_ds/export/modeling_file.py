"""The modelling code of a family as one file, which needs torch and transformers alone."""

from __future__ import annotations

import ast
import importlib
import inspect
from importlib.util import resolve_name
from types import ModuleType

PACKAGE = "lift_ds."
# What is imported from these describes a family to this package; an exported model is described by its config.
ROW_MODULES = ("lift_ds.models.family", "lift_ds.models.families", "lift_ds.models.registry")


def joined_source(module_name: str) -> str:
    """The source of a module as one file: in front of it, once each, its neighbours, and theirs.

    Neighbours are what it imports relatively or from this package. The statements that use what it imports from
    `ROW_MODULES` stay behind: the family's row, and its registration.

    Raises:
        ValueError: A whole module of this package is imported, not names from it.
    """
    sources: dict[str, str] = {}
    _add_source(module_name, sources)
    names = ", ".join(f"{name.rpartition('.')[2]}.py" for name in sources)
    header = f'"""The modelling code of this folder, joined from {names} of lift_ds."""'
    return "\n\n".join([header, "from __future__ import annotations", *sources.values()])


def _add_source(module_name: str, sources: dict[str, str]) -> None:
    """Adds a module's neighbours, where they are not there yet, and then its own part of the joined file."""
    module = importlib.import_module(module_name)
    source = inspect.getsource(module)
    lines, statements = source.splitlines(keepends=True), ast.parse(source).body
    row_names: set[str] = set()
    for node in statements:
        _refuse_whole_modules(node, module)
        if not isinstance(node, ast.ImportFrom):
            continue
        origin = resolve_name("." * node.level + (node.module or ""), module.__package__)
        is_neighbour = bool(node.level) or origin.startswith(PACKAGE)
        renamed = ""
        if origin in ROW_MODULES:
            row_names |= {alias.asname or alias.name for alias in node.names}
        elif is_neighbour:
            renamed = "".join(f"{alias.asname} = {alias.name}\n" for alias in node.names if alias.asname)
            if origin not in sources:
                _add_source(origin, sources)
        if is_neighbour or origin == "__future__":
            _replace(node, lines, renamed)
    for node in statements:
        if any(isinstance(part, ast.Name) and part.id in row_names for part in ast.walk(node)):
            _replace(node, lines)
    sources[module_name] = "".join(lines)


def _refuse_whole_modules(node: ast.stmt, module: ModuleType) -> None:
    if isinstance(node, ast.Import):
        whole = [alias.name for alias in node.names if alias.name.startswith(PACKAGE)]
    elif isinstance(node, ast.ImportFrom) and (node.level or f"{node.module}.".startswith(PACKAGE)):
        whole = [alias.name for alias in node.names if inspect.ismodule(getattr(module, alias.asname or alias.name))]
    else:
        return
    if whole:
        raise ValueError(
            f"{module.__file__}:{node.lineno}: {', '.join(whole)} is imported as a module, which an export cannot "
            "carry; import the names that are used: from ... import name."
        )


def _replace(statement: ast.stmt, lines: list[str], text: str = "") -> None:
    """Replaces the lines of a statement at the top of a module; above what is no import, blank lines go too."""
    first = statement.lineno - 1
    while not isinstance(statement, ast.ImportFrom) and not lines[first - 1].strip():
        first -= 1
        lines[first] = ""
    for number in range(statement.lineno - 1, statement.end_lineno or statement.lineno):
        lines[number] = ""
    lines[statement.lineno - 1] = text
