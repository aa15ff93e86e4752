"""What DeepSpeed compiles when it is first needed, and what kills leave of it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lift_ds.training import extensions
from tests.conftest import REPOSITORY, SMALL, clean_environment, free_port, latest, run

TEN_LINES = """#include <Python.h>
static PyObject* answer(PyObject*, PyObject*) { return PyLong_FromLong(42); }
static PyMethodDef methods[] = {{"answer", answer, METH_NOARGS, ""}, {nullptr, nullptr, 0, nullptr}};
static PyModuleDef module_def = {PyModuleDef_HEAD_INIT, "tiny", "", -1, methods};
PyMODINIT_FUNC PyInit_tiny() { return PyModule_Create(&module_def); }
"""
LOAD = """
import sys
from deepspeed.ops.op_builder.cpu.builder import CPUOpBuilder
from lift_ds.training.extensions import guard_builds

class TinyBuilder(CPUOpBuilder):
    def __init__(self):
        super().__init__(name="tiny")
    def absolute_name(self):
        return "tiny"
    def sources(self):
        return [sys.argv[1]]
    def cxx_args(self):
        return ["-O0"]

guard_builds()
guard_builds()  # the guard is one, however often it is asked for
print("answer", TinyBuilder().load().answer())
"""
# A compiler that takes a minute, as long as nobody has killed it once.
SLOW_ONCE = """#!/bin/sh
case " $* " in *" -c "*) if [ ! -e {mark} ]; then touch {mark}; sleep 60; fi ;; esac
exec g++ "$@"
"""


def wait_for(path, process, seconds=120):
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def tiny(tmp_path):
    """A command that loads a tiny operation, the environment it runs in, and the file that says that g++ is at work."""
    (tmp_path / "tiny.cpp").write_text(TEN_LINES)
    compiler, mark = tmp_path / "slow_once", tmp_path / "compiling"
    compiler.write_text(SLOW_ONCE.format(mark=mark))
    compiler.chmod(0o755)
    environment = clean_environment(TORCH_EXTENSIONS_DIR=str(tmp_path / "cache"), CXX=str(compiler))
    return [sys.executable, "-c", LOAD, str(tmp_path / "tiny.cpp")], environment, mark


def test_a_kill_while_compiling_harms_nobody(tiny, tmp_path):
    """The second process waits for the first and says so; when that is killed, it compiles, beside the orphaned g++."""
    command, environment, mark = tiny
    started = {"cwd": REPOSITORY, "env": environment, "text": True, "stdout": subprocess.PIPE}
    first = subprocess.Popen(command, stderr=subprocess.STDOUT, start_new_session=True, **started)
    try:
        wait_for(mark, first)
        (lock,) = (tmp_path / "cache").glob("lift_ds-*/tiny/lock")  # torch's, which would be waited for without end
        second = subprocess.Popen(command, stderr=subprocess.STDOUT, **started)
        line = ""
        while not line.startswith("waiting"):
            line = second.stdout.readline()
            assert line, "ended without a word"
        assert f"waiting for DeepSpeed's tiny, which is being compiled by process {first.pid} on " in line
        first.kill()
        printed, _ = second.communicate(timeout=60)
    finally:
        os.killpg(first.pid, signal.SIGKILL)  # with the g++ that sleeps
    assert second.returncode == 0, printed
    folder = lock.parent
    assert printed.splitlines()[0] == (f"compiling DeepSpeed's tiny: once in this environment, about 40 s, in {folder}")
    assert printed.splitlines()[-1] == "answer 42"
    assert "compiling" in first.communicate()[0]
    assert sorted(path.name for path in folder.parent.iterdir()) == ["tiny", "tiny.held"]
    third = run(command, env=environment)
    assert third.stdout.splitlines()[-1] == "answer 42"
    assert "compiling" not in third.stdout


def test_environments_have_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setenv(extensions.ROOT, str(tmp_path))
    first = extensions.settle_root()
    assert extensions.settle_root() == first == Path(os.environ[extensions.ROOT])
    monkeypatch.setenv(extensions.ROOT, str(tmp_path))
    monkeypatch.setattr(sys, "prefix", "/another/environment")
    second = extensions.settle_root()
    assert first.parent == second.parent == tmp_path
    assert first != second


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch, capsys):
    """The temporary folder then, which is said; but nobody else's folder there."""
    (tmp_path / "file").touch()
    monkeypatch.setenv(extensions.ROOT, str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(extensions.tempfile, "gettempdir", lambda: str(tmp_path))
    root = extensions.settle_root()
    assert root.parent == tmp_path / f"torch_extensions-{os.getuid()}"
    assert f"cannot be written (Not a directory); compiling in {root}" in capsys.readouterr().out
    monkeypatch.setattr(extensions.os, "getuid", lambda: 12345)
    with pytest.raises(PermissionError, match="belongs to another user"):
        extensions.make_private(root)


@pytest.mark.slow
@pytest.mark.distributed
def test_a_launch_killed_while_it_compiles(tiny_dir, tmp_path):
    """A first launch that offloads its optimizer, killed within DeepSpeed's own g++; the second one trains."""
    json_path, cache = tmp_path / "offload.json", tmp_path / "cache"
    loaded = json.loads((REPOSITORY / "ds_configs" / "zero3.json").read_text())
    loaded["zero_optimization"]["offload_optimizer"] = {"device": "cpu"}
    json_path.write_text(json.dumps(loaded))
    settings = ["--deepspeed", json_path, "--model", tiny_dir, "--output", tmp_path / "run"]
    settings = latest(*SMALL, *settings, "eval.rows=0", "eval.solve_items=0")
    environment = clean_environment(TORCH_EXTENSIONS_DIR=str(cache))
    command = ["deepspeed", "--num_gpus", "2", "--master_port", str(free_port()), "launchers/train.py", *settings]
    first = subprocess.Popen(
        [*map(str, command)], cwd=REPOSITORY, env=environment, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    while not list(cache.glob("lift_ds-*/cpu_adam/lock")):
        assert first.poll() is None, first.communicate()[0]
        time.sleep(0.05)
    time.sleep(3)
    found = subprocess.run(["pgrep", "-f", f"python.*{tmp_path}"], text=True, stdout=subprocess.PIPE, check=False)
    for pid in map(int, found.stdout.split()):  # launcher and ranks; the compiler goes on, as it would
        os.kill(pid, signal.SIGKILL)
    first.wait(timeout=60)
    assert list(cache.glob("lift_ds-*/cpu_adam/lock"))
    assert not list(cache.glob("lift_ds-*/cpu_adam/cpu_adam.so"))
    second = run([*map(str, command)], env=environment, timeout=600)
    assert second.stdout.count("compiling DeepSpeed's cpu_adam: once in this environment, about 40 s, in ") == 1
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) >= 6
