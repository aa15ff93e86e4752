"""How commands on ranks end."""

import sys

import pytest

from lift_ds.ranks import running

SECOND = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("error", "is_together", "status", "said"),
    [
        (ValueError("a bad file"), False, 2, ""),
        (ValueError("a bad file"), True, 2, "error on rank 1: a bad file\n"),
        (RuntimeError("out of memory"), False, 1, "error on rank 1: RuntimeError: out of memory\n"),
        (RuntimeError("out of memory"), True, 1, "error on rank 1: RuntimeError: out of memory\n"),
        (AssertionError(), True, 1, "error on rank 1: AssertionError\n"),
    ],
)
def test_errors_of_one_rank_are_said(error, is_together, status, said, monkeypatch, capsys):
    """Before ranks work together, all of a machine find the same of files and settings, and its first one says it.

    A fault, which no `raise` of the package explains, is said by whoever has it, below its traceback.
    """

    def fail(launch):
        raise error

    monkeypatch.setattr(running, "leave", sys.exit)
    for name, value in SECOND.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(running, "has_met", lambda: is_together)
    with pytest.raises(SystemExit) as ended:
        running.run_on_ranks(fail)
    assert ended.value.code == status
    printed = capsys.readouterr().err
    assert printed.startswith("Traceback (most recent call last):\n") == (status == 1)
    assert ("in fail\n    raise error\n" in printed) == (status == 1)
    assert printed.endswith(said) and bool(printed) == bool(said)


def test_half_a_launch_is_one_line(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(SystemExit) as ended:
        running.run_on_ranks(lambda launch: None)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(
        "error: RANK=0 in the environment, but not WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT:"
    )
    assert said.count("\n") == 1
