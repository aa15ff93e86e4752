"""The examples run as they are, and learn."""

import re
import runpy
import sys

import pytest

from tests.conftest import REPOSITORY


@pytest.mark.parametrize(
    ("script", "arguments", "line"),
    [
        ("lift_loop.py", ["--steps", "150"], r"step 150: .* ([\d.]+)% of masked digits right"),
        ("trainer.py", [], r"([\d.]+)% of the sums are right"),
    ],
)
def test_it_learns(script, arguments, line, monkeypatch, capsys):
    """A tenth of the digits, and a tenth of a hundredth of the sums, would be right by chance."""
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    runpy.run_path(str(REPOSITORY / "examples" / script), run_name="__main__")
    assert float(re.search(line, capsys.readouterr().out).group(1)) > 80
