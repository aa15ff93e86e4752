"""How commands on ranks end."""

import sys

import pytest

from lift_ds.ranks import running


def test_errors_of_one_rank_are_said(monkeypatch, capsys):
    """Ranks that work together may fail alone, of memory or files; before, all find the same and one says it."""

    def fail(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(running, "leave", sys.exit)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for is_together, said in ((False, ""), (True, "error on rank 1: out of memory\n")):
        monkeypatch.setattr(running, "has_started", lambda is_together=is_together: is_together)
        with pytest.raises(SystemExit) as ended:
            running.run_on_ranks(fail)
        assert ended.value.code == 2
        assert capsys.readouterr().err == said
