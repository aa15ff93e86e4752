"""The static checks, as part of the test run."""

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
    long = {path.name: lines for path in files if (lines := len(path.read_text().splitlines())) > 360}
    assert not long
