"""How a run begins: ranks, folder, and errors before the first step."""

import multiprocessing
import os
import time

import pytest

from lift_ds.cli import train
from lift_ds.ranks import once
from lift_ds.ranks.launch import Launch, check_semaphores
from lift_ds.ranks.shares import Alone
from lift_ds.training import run_files
from lift_ds.training.run_files import LOCK, claimed
from tests.conftest import REPOSITORY, SMALL, clean_environment, free_port, latest, launch_train, run, run_script

ONE_RANK_FAILS = """
import os, time
from lift_ds.cli import train

def prepare(*arguments):
    if os.environ["RANK"] == "1":
        raise ValueError("rows.jsonl:3: only this machine's copy is bad.")
    time.sleep(1)
    return real(*arguments)

real, train.prepare = train.prepare, prepare
train.main()
"""


def test_ranks_meet_before_anything_is_read(tiny_dir, tmp_path, monkeypatch):
    def refuse(launch):
        raise RuntimeError("port 29500 is taken")

    monkeypatch.setattr(once, "meet", refuse)
    monkeypatch.setattr(run_files, "resolve_folder", lambda *_: pytest.fail("the model was fetched first"))
    arguments = train.make_parser().parse_intermixed_args(
        latest(*SMALL, "--model", tiny_dir, "--output", tmp_path / "run")
    )
    with pytest.raises(RuntimeError, match="port 29500 is taken"):
        train.run_training(arguments, Launch(0, 2, 0, 2))
    assert not (tmp_path / "run").exists()


@pytest.mark.distributed
def test_one_rank_fails_alone_while_it_reads(tiny_dir, tmp_path):
    """It says so, rank 0 says nothing, and all end; nothing is left of the run."""
    script = tmp_path / "script.py"
    script.write_text(ONE_RANK_FAILS)
    since = time.monotonic()
    arguments = latest(*SMALL, "--model", tiny_dir, "--output", tmp_path / "run")
    done = run_script(script, *arguments, num_ranks=2, check=False)
    assert done.returncode == 2
    assert done.stdout.count("error") == 1
    assert "error on rank 1: rows.jsonl:3: only this machine's copy is bad.\n" in done.stdout
    assert time.monotonic() - since < 60


@pytest.mark.distributed
def test_what_all_ranks_find_is_said_once(tiny_dir, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "response": "b"}\n' * 9 + '{"prompt": 3}\n')
    arguments = [*SMALL, "--model", tiny_dir, "--output", tmp_path / "run", "--data", tmp_path / "rows.jsonl"]
    done = launch_train(*arguments, "eval.rows=0", check=False)
    assert done.returncode == 2
    assert done.stdout.count("rows.jsonl:10") == done.stdout.count("error") == 1
    assert "on rank" not in done.stdout
    assert not (tmp_path / "run").exists()


@pytest.mark.distributed
def test_a_prometheus_file_that_cannot_be_written(tiny_dir, tmp_path):
    """Rank 0 alone writes it, and finds that before anything is read; the other rank ends with it."""
    path = tmp_path / "nowhere" / "run.prom"
    arguments = [*SMALL, "--model", tiny_dir, "--output", tmp_path / "run", f"runtime.prometheus_file={path}"]
    done = launch_train(*arguments, check=False)
    assert done.returncode == 2
    assert f"runtime.prometheus_file {path}: cannot be written: No such file or directory; name a pl" in done.stdout
    assert not (tmp_path / "run").exists()


@pytest.mark.distributed
def test_unusual_surroundings(tiny_dir, tmp_path):
    """A launcher in a folder with spaces and umlauts, symlinks, no home, a locale without letters, a tight umask.

    On CPUs nothing is compiled meanwhile, and nothing is left in /dev/shm.
    """
    folder, cache, before = tmp_path / "Übung eins", tmp_path / "cache", set(os.listdir("/dev/shm"))
    (folder / "real").mkdir(parents=True)
    (folder / "mödel link").symlink_to(tiny_dir)
    (folder / "runs").symlink_to("real")
    (folder / "zero.json").write_bytes(b"\xef\xbb\xbf" + (REPOSITORY / "ds_configs" / "zero3.json").read_bytes())
    environment = clean_environment(
        TORCH_EXTENSIONS_DIR=str(cache), LC_ALL="C", HOME=str(folder / "zero.json" / "home")
    )
    command = ["torchrun", "--nproc_per_node", "2", "--master_port", str(free_port()), "-m", "lift_ds.cli.train"]
    settings = latest(
        *SMALL, "--deepspeed", "zero.json", "--model", "mödel link", "optim.steps=1", "eval.solve_items=0"
    )
    done = run([*command, *settings], env=environment, cwd=folder, umask=0o077)
    assert "run folder     runs/001\n" in done.stdout
    assert (folder / "real" / "001" / "metrics.jsonl").stat().st_mode & 0o777 == 0o600
    assert (folder / "real" / "001" / "export" / "model.safetensors").is_file()
    assert not cache.exists()
    assert not [name for name in set(os.listdir("/dev/shm")) - before if "deepspeed" in name]


def test_numbered_folders_are_taken_once(tmp_path):
    """Two runs that begin at once, and both found 001 free."""
    with claimed(str(tmp_path / "runs" / "001"), True, Alone()) as first:
        with claimed(str(tmp_path / "runs" / "001"), True, Alone()) as second:
            (tmp_path / "runs" / "001" / "metrics.jsonl").touch()
        assert (first, second) == (str(tmp_path / "runs" / "001"), str(tmp_path / "runs" / "002"))
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["001"]  # nothing has come of the other


def hold(folder, ready):
    with claimed(str(folder), False, Alone()):
        ready.set()
        time.sleep(60)


def test_a_folder_where_another_run_writes(tmp_path):
    """Refused by name while it lives; free as soon as it is killed."""
    folder = tmp_path / "run"
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    other = context.Process(target=hold, args=(folder, ready))
    other.start()
    assert ready.wait(30)
    message = rf"^output={folder}: another run is writing there: process {other.pid} on .*; wait for its end, or name"
    with pytest.raises(ValueError, match=message), claimed(str(folder), False, Alone()):
        pass
    other.kill()
    other.join()
    with claimed(str(folder), False, Alone()), (folder / LOCK).open() as file:
        assert f"process {os.getpid()} " in file.read()


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    message = f"output={tmp_path / 'file' / 'run'}: cannot be written: Not a directory; name a place that can"
    with pytest.raises(ValueError, match=message), claimed(str(tmp_path / "file" / "run"), False, Alone()):
        pass


def test_queues_without_shared_memory(monkeypatch):
    class Context:
        def Lock(self):  # noqa: N802
            raise OSError(28, "No space left on device")

    check_semaphores("data.workers=2")
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: Context())
    with pytest.raises(RuntimeError, match="data.workers=2 needs a little of /dev/shm, which fails: No space left on"):
        check_semaphores("data.workers=2")
