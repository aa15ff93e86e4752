"""`docs/files.md`: every file of the package with the first sentence of its docstring.

python -m tests.file_map          writes it; a test compares
"""

from __future__ import annotations

import ast
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
PAGE = REPOSITORY / "docs" / "files.md"
ROOMS = (
    "method", "objectives", "training", "data", "models", "storage", "export", "sampling", "evaluation", "config",
    "planning", "ranks", "report", "cli",
)  # fmt: skip
HEAD = """# Every file

Made by `python -m tests.file_map` from the first sentence of each module. README's list of rooms comes first; to read
the method, begin with `lift_ds/training/step.py`.
"""


def first_sentence(path: Path) -> str:
    """The beginning of a module's docstring, in one line."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split()).rstrip(".")


def section(folder: Path, level: int) -> list[str]:
    """A folder's files, then its folders."""
    lines = [f"{'#' * level} `{folder.relative_to(REPOSITORY)}/`", "", f"{first_sentence(folder / '__init__.py')}.", ""]
    files = [path for path in sorted(folder.glob("*.py")) if path.name != "__init__.py"]
    lines += [f"- `{path.name}`: {first_sentence(path)}." for path in files]
    for inner in sorted(path.parent for path in folder.glob("*/__init__.py")):
        lines += ["", *section(inner, level + 1)]
    return lines


def page() -> str:
    """The whole page."""
    package = REPOSITORY / "lift_ds"
    loose = [path for path in sorted(package.glob("*.py")) if path.name != "__init__.py"]
    lines = [HEAD, "## `lift_ds/`", "", f"{first_sentence(package / '__init__.py')}.", ""]
    lines += [f"- `{path.name}`: {first_sentence(path)}." for path in loose]
    rooms = [package / name for name in ROOMS]
    assert {path.parent for path in package.glob("*/__init__.py")} == set(rooms), "a room is missing from ROOMS"
    for room in rooms:
        lines += ["", *section(room, 2)]
    for folder in ("tools", "examples", "benchmarks"):
        lines += ["", f"## `{folder}/`", ""]
        lines += [f"- `{path.name}`: {first_sentence(path)}." for path in sorted((REPOSITORY / folder).glob("*.py"))]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
