"""Ranks that are forked: their environment, their output, and how they end."""

import pytest

from tests.conftest import clean_environment
from tests.preloaded import Preloaded

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def run_script():
    """With nothing imported, it is there at once."""
    bare = Preloaded(clean_environment(), imported=())
    return lambda script, *arguments, **kwargs: bare.run([str(script), *arguments], **kwargs)


def write_script(folder, body):
    path = folder / "script.py"
    path.write_text(f"import os, sys, time\nrank = os.environ.get('RANK')\n{body}")
    return path


def test_each_has_its_rank_and_its_arguments(run_script, tmp_path):
    names = "RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE"
    script = write_script(tmp_path, f"print(__name__, sys.argv[1:], *map(os.environ.get, {names.split()!r}))")
    printed = run_script(script, "--flag", num_ranks=2).stdout
    assert sorted(printed.splitlines()) == ["__main__ ['--flag'] 0 0 2 2", "__main__ ['--flag'] 1 1 2 2"]
    assert run_script(script).stdout == "__main__ [] None None None None\n"


def test_a_rank_that_fails_ends_the_others(run_script, tmp_path):
    script = write_script(tmp_path, "time.sleep(60) if rank == '0' else sys.exit('rank 1 is wrong')")
    done = run_script(script, num_ranks=2, check=False, timeout=30)
    assert (done.returncode, done.stdout) == (1, "rank 1 is wrong\n")
    with pytest.raises(AssertionError, match="exited with 1:\nrank 1 is wrong"):
        run_script(script, num_ranks=2)


def test_what_does_not_end_is_killed(run_script, tmp_path):
    script = write_script(tmp_path, "print('begins', flush=True)\ntime.sleep(60)")
    with pytest.raises(AssertionError, match="took longer than 2 seconds:\nbegins"):
        run_script(script, timeout=2)
    assert run_script(write_script(tmp_path, "print('next')")).stdout == "next\n"


def test_large_output_and_small_files(run_script, tmp_path):
    """More than a pipe holds; the limit is of files, not of what is printed."""
    body = f"print('x' * 200_000)\nopen({str(tmp_path / 'file')!r}, 'wb', buffering=0).writelines([b'x' * 2000] * 2)"
    done = run_script(write_script(tmp_path, body), file_size=1000, check=False)
    assert done.returncode == 1
    assert done.stdout.startswith("x" * 200_000) and "File too large" in done.stdout
