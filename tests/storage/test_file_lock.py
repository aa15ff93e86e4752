"""Files that one process holds at a time."""

import errno
import multiprocessing
import os
import signal
import socket
import time

import pytest

from lift_ds.storage import file_lock
from lift_ds.storage.file_lock import HeldError, held


def hold_for_ever(path, ready):
    with held(path):
        if os.fork() == 0:  # a worker that outlives its parent does not hold the file
            time.sleep(60)
        ready.set()
        time.sleep(60)


def test_a_kill_lets_go(tmp_path):
    path = tmp_path / "lock"
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    holder = context.Process(target=hold_for_ever, args=(path, ready))
    holder.start()
    try:
        assert ready.wait(30)
        with (
            pytest.raises(HeldError, match=rf"^process {holder.pid} on {socket.gethostname()} \(.*\) since 20"),
            held(path),
        ):
            pass
        said = []

        def say_waiting(text):
            said.append(text)
            os.kill(holder.pid, signal.SIGKILL)

        with held(path, say_waiting):
            assert str(os.getpid()) in path.read_text()
        assert len(said) == 1
        assert said[0].startswith(f"process {holder.pid} ")
    finally:
        holder.kill()
        holder.join()
    assert path.read_text() == ""


def test_without_locks_a_warning(tmp_path, monkeypatch):
    """As on a network file system that has none."""

    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(file_lock.fcntl, "lockf", refuse)
    message = "cannot be locked .No locks available.: nothing else may use it now"
    with pytest.warns(UserWarning, match=message), held(tmp_path / "lock"):
        pass


def test_a_disk_that_takes_nothing_any_more_hides_no_error(tmp_path, monkeypatch):
    with pytest.raises(RuntimeError, match="^what happened$"), held(tmp_path / "lock"):
        monkeypatch.setattr(file_lock, "_write_holder", refuse)
        raise RuntimeError("what happened")


def refuse(file, holder):
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))
