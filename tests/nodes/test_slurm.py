"""Slurm for real: `launchers/train.slurm` over two hosts, pre-empted, near its time limit, cancelled, and done."""

import time

import pytest

from tests.conftest import latest, read_steps
from tests.nodes import hosts as on_hosts
from tests.nodes import slurm as on_slurm
from tests.nodes.test_nodes import RUN

pytestmark = [pytest.mark.slow, pytest.mark.distributed]
LIMIT = 180


@pytest.fixture
def slurm(tmp_path):
    reason = on_hosts.why_not() or on_slurm.why_not()
    if reason is not None:
        pytest.skip(reason)
    with on_hosts.Hosts(tmp_path, 2) as hosts, on_slurm.Slurm(hosts) as made:
        made.variables |= {"RECIPE": "launchers/recipes/pretrain_base.yaml", "DS_JSON": "ds_configs/zero3.json"}
        yield made


def submit(slurm, output, *more):
    """A training job on both hosts, which prints into `printed.txt`."""
    options = ["--nodes=2", "--gpus-per-node=1", f"--output={slurm.hosts.work}/printed.txt"]
    words = latest(*RUN, "--output", output, "checkpoint.save_every=100000", *more)
    return slurm.submit(*options, "launchers/train.slurm", *words)


def await_steps(slurm, output, job, number):
    """Waits until that many more steps are in the metrics."""

    def count():
        return len(read_steps(output)) if (output / "metrics.jsonl").is_file() else 0

    before = count()
    slurm.wait_for(lambda: count() >= before + number, LIMIT, f"{number} steps after {before}")
    assert slurm.job(job)["JobState"] == "RUNNING"


def await_requeue(slurm, job, times):
    """Waits until the job is back in the queue, from where Slurm starts it two minutes later; here, in some seconds."""
    slurm.wait_for(lambda: slurm.job(job)["Restarts"] == times, LIMIT, f"restart {times}")
    slurm.wait_for(lambda: slurm.job(job)["JobState"] == "PENDING", LIMIT, "back in the queue")
    slurm.on(
        0, "scontrol", "update", f"JobId={job}", "StartTime=now+5"
    )  # earlier, and a credential would be the revoked one


def test_a_job_that_stops_goes_on(slurm, tmp_path):
    output, printed = tmp_path / "run", tmp_path / "printed.txt"
    job = submit(slurm, output, "optim.steps=100000")
    await_steps(slurm, output, job, 5)
    # another job takes its place: SIGTERM to all ranks, a minute before SIGKILL
    taker = slurm.submit("-p", "high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap", "sleep 1")
    since = time.monotonic()
    slurm.wait_for(lambda: slurm.job(taker)["JobState"] != "PENDING", LIMIT, "its place for another job")
    assert time.monotonic() - since < on_slurm.GRACE  # it left by itself
    saved = len(read_steps(output))
    assert (output / "checkpoints" / "latest").read_text().strip() == f"step-{saved:06}"
    await_requeue(slurm, job, "1")
    await_steps(slurm, output, job, 3)
    assert f"resumed from {output}/checkpoints/step-{saved:06} at step {saved}" in printed.read_text()
    # what Slurm sends to the script before the time limit
    slurm.on(0, "scancel", "--batch", "--signal=USR1", job)
    await_requeue(slurm, job, "2")
    again = len(read_steps(output))
    await_steps(slurm, output, job, 3)
    assert f"resumed from {output}/checkpoints/step-{again:06} at step {again}" in printed.read_text()
    assert [step["step"] for step in read_steps(output)][: again + 1] == list(range(1, again + 2))
    # cancelled is cancelled
    slurm.on(0, "scancel", job)
    slurm.wait_for(lambda: slurm.states() == {"idle"}, LIMIT, "idle nodes")
    assert slurm.job(job)["JobState"] == "CANCELLED"
    # and done is done
    job = submit(slurm, tmp_path / "short", "optim.steps=3")
    slurm.wait_for(lambda: slurm.job(job)["JobState"] in ("COMPLETED", "FAILED"), LIMIT, "the end")
    assert (slurm.job(job)["JobState"], slurm.job(job)["Restarts"]) == ("COMPLETED", "0")
    assert len(read_steps(tmp_path / "short")) == 3
