"""How commands on ranks end."""

import sys

import pytest

from lift_ds.ranks import running

SECOND = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


def test_errors_of_one_rank_are_said(monkeypatch, capsys):
    """Ranks that work together may fail alone, of memory or files; before, all find the same and one says it."""

    def fail(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(running, "leave", sys.exit)
    for name, value in SECOND.items():
        monkeypatch.setenv(name, value)
    for is_together, said in ((False, ""), (True, "error on rank 1: out of memory\n")):
        monkeypatch.setattr(running, "has_met", lambda is_together=is_together: is_together)
        with pytest.raises(SystemExit) as ended:
            running.run_on_ranks(fail)
        assert ended.value.code == 2
        assert capsys.readouterr().err == said


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
