"""A disk that is full, that becomes read-only, or that does not answer for a minute, under a run of two ranks."""

import os
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest
from safetensors.torch import load_file

from lift_ds.storage.run_folder import read_metrics
from tests.conftest import BASE, SMALL, clean_environment, free_port, latest, losses_of, run_script

pytestmark = [pytest.mark.slow, pytest.mark.distributed]
RUN = [*SMALL, "--model", BASE, "checkpoint.save_every=4", "eval.rows=0", "eval.solve_items=0", "optim.lr=1e-3"]
RUN += ["data.clock=2026-01-01T00:00:00"]
LIMIT = 120


def mount(*words):
    """Runs `mount`, or skips where it may not be done."""
    done = subprocess.run(["mount", *map(str, words)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"needs root that may mount: {done.stderr.strip()}")


@pytest.fixture
def disk(tmp_path):
    """A disk of 200 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount("-t", "tmpfs", "-o", "size=200M", "none", place)
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def train(output, *more):
    """A run to its end."""
    words = latest(*RUN, "--output", output, *more)
    return run_script("launchers/train.py", *words, num_ranks=2, check=False)


@pytest.fixture
def start():
    """Starts a run; what is still going at the end of the test ends, too."""
    started = []

    def starting(output, printed, *more):
        command = ["torchrun", "--nproc_per_node=2", f"--master_port={free_port()}", "launchers/train.py"]
        words = [str(word) for word in latest(*RUN, "--output", output, *more)]
        with printed.open("w") as file:
            started.append(subprocess.Popen([*command, *words], stdout=file, stderr=file, env=clean_environment()))
        return started[-1]

    yield starting
    for process in started:
        if process.poll() is None:
            process.terminate()
            process.wait(timeout=LIMIT)


def error_of(printed):
    """The line of a run's end that explains it."""
    return next(line for line in printed.read_text().splitlines() if line.startswith("error: "))


def last_step(output):
    return max((record["step"] for record in read_metrics(output / "metrics.jsonl", "step")), default=0)


def await_step(output, step, process):
    deadline = time.monotonic() + LIMIT
    while last_step(output) < step:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)


def checkpoints(output):
    return sorted(path.name for path in (output / "checkpoints").glob("step-*"))


def fill(disk, free=0):
    """Leaves only that many bytes."""
    with (disk / "ballast").open("wb", buffering=0) as file, suppress(OSError):
        while (left := shutil.disk_usage(disk).free - free) > 0:
            file.write(bytes(min(left, 1 << 20)))


def test_a_disk_too_full_for_a_checkpoint(disk, start, tmp_path):
    """One error; the checkpoint that was there is whole, and the run goes on when there is room."""
    output, printed = disk / "run", tmp_path / "printed.txt"
    process = start(output, printed, "optim.steps=100000")
    await_step(output, 5, process)
    fill(disk, 10 << 20)
    assert process.wait(timeout=LIMIT) != 0
    assert "GiB needed. Older checkpoints are untouched; free space or set another output" in error_of(printed)
    go_on(output, disk)


def test_a_run_that_goes_on_without_a_checkpoint(disk, start, tmp_path):
    """And writes the next one, once there is room."""
    output, printed = disk / "run", tmp_path / "printed.txt"
    process = start(output, printed, "optim.steps=100000", "checkpoint.on_full_disk=skip")
    await_step(output, 5, process)
    fill(disk, 10 << 20)
    await_step(output, 13, process)
    assert checkpoints(output) == ["step-000004"]
    assert "The run goes on without it (checkpoint.on_full_disk=skip)." in printed.read_text()
    (disk / "ballast").unlink()
    step = last_step(output)
    await_step(output, step + 9, process)
    assert int(checkpoints(output)[-1][5:]) > step
    fill(disk, 10 << 20)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=LIMIT) != 0
    assert "GiB needed. Older checkpoints are untouched" in error_of(printed)  # the last one has to be written


def test_a_disk_full_to_the_last_byte(disk, start, tmp_path):
    """Between checkpoints, too, where only a line of metrics is written."""
    output, printed = disk / "run", tmp_path / "printed.txt"
    train(output, "optim.steps=4")
    process = start(output, printed, "--resume", "auto", "optim.steps=100000", "checkpoint.save_every=100000")
    await_step(output, 6, process)
    fill(disk)
    assert process.wait(timeout=LIMIT) != 0
    expected = (
        f"error: {output}/metrics.jsonl: no line can be added: No space left on device. Checkpoints are untouched"
    )
    assert error_of(printed).startswith(expected)
    go_on(output, disk)


def go_on(output, disk):
    """The newest checkpoint is whole: two more steps from it."""
    (disk / "ballast").unlink(missing_ok=True)
    step = int(checkpoints(output)[-1][5:])
    done = train(output, "--resume", "auto", f"optim.steps={step + 2}", "checkpoint.save_every=0")
    assert done.returncode == 0, done.stdout[-5000:]
    assert f"step-{step:06} at step {step}" in done.stdout
    assert last_step(output) == step + 2


def test_a_disk_that_becomes_read_only(start, tmp_path):
    """As ext4 does where it meets an error."""
    image, place = tmp_path / "image", tmp_path / "disk"
    with image.open("wb") as file:
        file.truncate(300 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)
    place.mkdir()
    mount("-o", "loop,errors=remount-ro", image, place)
    try:
        device = subprocess.run(["findmnt", "-n", "-o", "SOURCE", str(place)], capture_output=True, text=True).stdout
        trigger = Path("/sys/fs/ext4") / Path(device.strip()).name / "trigger_fs_error"
        output, printed = place / "run", tmp_path / "printed.txt"
        process = start(output, printed, "optim.steps=100000")
        await_step(output, 5, process)
        with suppress(OSError):
            trigger.write_text("a test")
        assert process.wait(timeout=LIMIT) != 0
        said = error_of(printed)
        assert "Read-only file system" in said and ("Older checkpoints" in said or "Checkpoints are untouched" in said)
        subprocess.run(["umount", str(place)], check=True)
        subprocess.run(["e2fsck", "-f", "-p", str(image)], capture_output=True)
        mount("-o", "loop", image, place)
        go_on(output, place)
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_disk_that_does_not_answer_for_a_minute(start, tmp_path):
    """The same losses and weights as on one that always does."""
    if shutil.which("bindfs") is None:
        pytest.skip("needs: apt-get install bindfs")
    straight, behind, place = tmp_path / "straight", tmp_path / "behind", tmp_path / "place"
    assert train(straight, "optim.steps=40").returncode == 0
    behind.mkdir()
    place.mkdir()
    served = subprocess.Popen(["bindfs", "-f", str(behind), str(place)])
    try:
        while not os.path.ismount(place):
            time.sleep(0.05)
        output, printed = place / "run", tmp_path / "printed.txt"
        process = start(output, printed, "optim.steps=40")
        await_step(behind / "run", 5, process)
        served.send_signal(signal.SIGSTOP)
        time.sleep(60)
        assert process.poll() is None
        served.send_signal(signal.SIGCONT)
        assert process.wait(timeout=LIMIT) == 0, printed.read_text()[-5000:]
        assert losses_of(behind / "run") == losses_of(straight)
        found, expected = (load_file(each / "export/model.safetensors") for each in (behind / "run", straight))
        assert all(found[name].equal(tensor) for name, tensor in expected.items())
    finally:
        served.send_signal(signal.SIGCONT)
        subprocess.run(["umount", "--lazy", str(place)], check=True)
        served.wait(timeout=20)
