"""The static checks, as part of the test run."""

import ast
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, run

BIN = Path(sys.executable).parent


@pytest.mark.parametrize(
    "command",
    [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"], ["lint-imports", "--config", "setup.cfg"]],
    ids=lambda command: " ".join(command[:2]),
)
def test_static_check(command):
    run([str(BIN / command[0]), *command[1:]], cwd=REPOSITORY)


def test_no_file_grows_too_long():
    files = [*REPOSITORY.glob("lift_ds/**/*.py"), *REPOSITORY.glob("tools/*.py"), *REPOSITORY.glob("launchers/*.py")]
    assert files
    long = {path.name: lines for path in files if (lines := len(path.read_text().splitlines())) > 300}
    assert not long


def imports_of(path, module, modules):
    """The modules of a package that a file imports anywhere, for typing alone too."""
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            source = ".".join([*base, *filter(None, [node.module])])
            # `from a.b import c` imports the module a.b.c where there is one, and a.b otherwise
            names = {f"{source}.{alias.name}" for alias in node.names}
            found |= names & modules or {source}
    return found & modules - {module}


def pairs_of(folder):
    """The modules below a folder's package that import each other."""
    files = {path: ".".join(path.relative_to(folder.parent).with_suffix("").parts) for path in folder.rglob("*.py")}
    files = {path: name.removesuffix(".__init__") for path, name in files.items()}
    modules = set(files.values())
    edges = {(name, other) for path, name in files.items() for other in imports_of(path, name, modules)}
    return sorted((one, other) for one, other in edges if one < other and (other, one) in edges)


def test_no_two_files_import_each_other(tmp_path):
    assert not pairs_of(REPOSITORY / "lift_ds")
    texts = {
        "made/__init__.py": "",
        "made/rows.py": "if TYPE_CHECKING:\n    from .text.ids import Ids",
        "made/text/__init__.py": "from made.text import ids",
        "made/text/ids.py": "def read():\n    from .. import rows",
        "made/text/other.py": "from . import ids\nimport made.rows",
    }
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert pairs_of(tmp_path / "made") == [("made.rows", "made.text.ids")]
