"""Writes real rows that every machine has: `python tools/make_docstring_rows.py rows.jsonl`.

Each function and class of Python's standard library that explains itself in 40 to 600 characters becomes a row: the
question names it with its arguments, the answer is its docstring (Python Software Foundation License). The rows follow
from the Python version alone; nothing is imported, the files are only parsed.
"""

from __future__ import annotations

import argparse
import ast
import json
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from lift_ds.cli.tool import flag, tool

SHORTEST, LONGEST = 40, 600
LEFT_OUT = ("test", "tests", "idlelib", "lib2to3", "site-packages", "turtledemo")
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def definitions(body: list[ast.stmt], prefix: str) -> Iterator[tuple[str, Definition]]:
    """Public functions and classes of a module with their full names, methods included."""
    for node in body:
        if isinstance(node, Definition) and not node.name.startswith("_"):
            name = f"{prefix}.{node.name}"
            yield name, node
            if isinstance(node, ast.ClassDef):
                yield from definitions(node.body, name)


def question(name: str, node: Definition) -> str:
    """What the row asks."""
    if isinstance(node, ast.ClassDef):
        return f"What is the class `{name}` of Python's standard library?"
    return f"What does `{name}({ast.unparse(node.args)})` of Python's standard library do?"


def make_rows(library: Path) -> Iterator[dict[str, str]]:
    """Rows of every module below a folder, in the order of their paths."""
    for path in sorted(library.rglob("*.py")):
        relative = path.relative_to(library)
        parts = (relative.parent if relative.name == "__init__.py" else relative.with_suffix("")).parts
        if any(part in LEFT_OUT or part.startswith("_") for part in parts):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue  # templates and samples that are no modules
        for name, node in definitions(tree.body, ".".join(parts)):
            answer = ast.get_docstring(node) or ""
            if SHORTEST <= len(answer) <= LONGEST:
                yield {"prompt": question(name, node), "response": answer}


@tool(
    "Writes the docstrings of Python's standard library as rows.",
    flag("output", type=Path, help="file to write, .jsonl"),
)
def main(arguments: argparse.Namespace) -> None:
    """Writes the file."""
    rows = list(make_rows(Path(sysconfig.get_path("stdlib"))))
    arguments.output.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print(f"{len(rows)} rows -> {arguments.output}")
