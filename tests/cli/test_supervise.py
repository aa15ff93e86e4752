"""A run that is kept going: what is started again, what is not, on which machines, and what it came to."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from lift_ds.cli import supervise
from lift_ds.cli.supervise import Supervisor, ranks_below, read_hosts
from lift_ds.storage.run_folder import SUPERVISE_FILE
from tests.conftest import REPOSITORY, SMALL, clean_environment, free_port, latest, read_steps

STANDS_IN = """
import json, sys, time
from pathlib import Path
output, plan = Path(sys.argv[sys.argv.index("--output") + 1]), json.loads(sys.argv[1])
number = len(list(output.glob("start-*")))
(output / f"start-{number}").write_text(json.dumps(sys.argv[2:]))
status, steps, words = plan[min(number, len(plan) - 1)]
with open(output / "metrics.jsonl", "a") as file:
    for step in steps:
        file.write(json.dumps({"kind": "step", "step": step, "seconds": 0.5, "time": time.time()}) + "\\n")
print(words)
sys.exit(status)
"""


def supervised(tmp_path, plan, restarts=5):
    """Starts that end as planned: (status, steps taken, last words); what is logged, pauses, and the status."""
    script, pauses = tmp_path / "command.py", []
    script.write_text(STANDS_IN.replace("\\\\n", "\\n"))
    command = [sys.executable, str(script), json.dumps(plan)]
    output = tmp_path / "run"
    whole = [*command, "--output", str(output), "--resume", "auto"]
    made = Supervisor(whole, output, restarts, 5.0, {}, 1, lambda host: True, pauses.append)
    status = made.run()
    return [json.loads(line) for line in (output / SUPERVISE_FILE).read_text().splitlines()], pauses, status


def test_it_is_started_again_until_it_is_done(tmp_path):
    plan = [(1, [1, 2], "error: a"), (-9, [3], "error: b"), (1, [], "error: c"), (1, [], "error: d"), (0, [4], "")]
    log, pauses, status = supervised(tmp_path, plan)
    assert status == 0
    assert [line["step"] for line in log if line["event"] == "start"] == [0, 2, 3, 3, 3]
    assert [line["status"] for line in log if line["event"] == "end"] == [1, 128 + 119, 1, 1, 0]
    assert pauses == [5.0, 5.0, 5.0, 10.0]  # longer only where no step was gained
    summary = log[-1]
    assert (summary["event"], summary["reason"], summary["starts"]) == ("summary", "done", 5)
    assert 0 < summary["goodput"] == pytest.approx(4 * 0.5 / summary["seconds"], rel=0.01)


@pytest.mark.parametrize(
    ("plan", "starts", "reason"),
    [
        ([(2, [], "error: no such key")], 1, "an error of settings or data"),
        (
            [(1, [1], "error: at 12:03 rank 3"), (2, [], "error: at 13:11 rank 0"), (1, [], "error: at 14:11 rank 1")],
            3,
            "failed 3 times at the same step with the same error",
        ),
        ([(1, [1], "killed"), *[(1, [], "")] * 9], 3, "failed after 2 restarts"),
        ([(1, [number], "error") for number in range(9)], 3, "failed after 2 restarts"),
    ],
)
def test_what_is_not_started_again(tmp_path, plan, starts, reason):
    log, pauses, status = supervised(tmp_path, plan, restarts=2)
    assert status == plan[0][0] and log[-1]["starts"] == starts and log[-1]["reason"].startswith(reason)
    assert len(pauses) == starts - 1


def test_a_machine_that_is_gone_is_left_out(tmp_path, capsys):
    """The hostfile of each start has those that can be reached."""
    gone = set()

    def is_reachable(host):
        return host not in gone

    hostfile = tmp_path / "hosts"
    hostfile.write_text("# machines\na slots=8\nb slots=4\n\n")
    hosts = read_hosts(hostfile)
    assert hosts == {"a": "a slots=8", "b": "b slots=4"}
    launcher = tmp_path / "launcher"
    launcher.write_text('#!/bin/sh\necho "$@" > "${2%hostfile-*}args-${2##*-}"\nexit 1\n')
    launcher.chmod(0o755)
    output = tmp_path / "run"
    made = Supervisor([str(launcher), "train.py"], output, 1, 0.0, hosts, 1, is_reachable, lambda _: gone.add("a"))
    assert made.run() == 1
    assert (output / "hostfile-0").read_text() == "a slots=8\nb slots=4\n"
    assert (output / "hostfile-1").read_text() == "b slots=4\n"
    gone.add("b")
    assert made.run() == 1
    printed = capsys.readouterr().out
    assert "runtime.nodes=1" in (output / "args-1").read_text() and "runtime" not in (output / "args-0").read_text()
    assert "a cannot be reached and is left out" in printed and "0 machines of --min-nodes=1 can be reached" in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--output", "x"], "no command: write it behind `--`"),
        (["--output", "x", "--", "deepspeed", "t.py", "--output", "y"], "--output in the command: both are added"),
        (["--output", "x", "--", "deepspeed", "t.py", "output=y"], "output=y in the command"),
        (["--output", "x", "--restarts", "-1", "--", "a"], "--restarts=-1, --backoff=5.0: at least 0"),
        (["--output", "x", "--hostfile", "none", "--", "a"], "--hostfile none: cannot be read"),
    ],
)
def test_what_cannot_be_supervised(words, message, capsys):
    with pytest.raises(SystemExit) as caught:
        supervise.main(words)
    assert caught.value.code == 2 and message in capsys.readouterr().err


def start(tmp_path, output, *settings):
    """The supervisor of a real run on two ranks, as a process."""
    command = [sys.executable, "launchers/supervise.py", "--output", output, "--backoff", "0.1", "--"]
    command += ["torchrun", "--nproc_per_node", "2", "--master_port", str(free_port()), "launchers/train.py"]
    command += latest(*SMALL, "eval.rows=0", "eval.solve_items=0", "checkpoint.save_every=5", *settings)
    printed = (tmp_path / "printed.txt").open("w")
    return subprocess.Popen(
        [*map(str, command)], cwd=REPOSITORY, env=clean_environment(), stdout=printed, stderr=printed
    )


def await_steps(process, output, number):
    deadline = time.monotonic() + 240
    while len(read_steps(output) if (output / "metrics.jsonl").is_file() else []) < number:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.distributed
def test_a_rank_that_is_killed(tiny_dir, tmp_path):
    """SIGKILL to a rank; the run goes on by itself and ends at its last step."""
    output = tmp_path / "run"
    process = start(tmp_path, output, "--model", tiny_dir, "optim.steps=60")
    await_steps(process, output, 12)
    os.kill(ranks_below(process.pid)[-1], signal.SIGKILL)
    assert process.wait(timeout=240) == 0
    log = [json.loads(line) for line in (output / SUPERVISE_FILE).read_text().splitlines()]
    assert [line["event"] for line in log] == ["start", "end", "start", "end", "summary"]
    assert log[1]["status"] != 0 == log[3]["status"] and log[1]["step"] < log[3]["step"] == 60
    assert log[-1]["reason"] == "done" and 0 < log[-1]["goodput"] < 1
    assert (output / "export" / "model.safetensors").exists()


@pytest.mark.distributed
def test_a_signal_stops_it_for_good(tiny_dir, tmp_path):
    """SIGTERM: the ranks finish their step and save; nothing is started again."""
    output = tmp_path / "run"
    process = start(tmp_path, output, "--model", tiny_dir, "optim.steps=100000")
    await_steps(process, output, 7)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == 0
    log = [json.loads(line) for line in (output / SUPERVISE_FILE).read_text().splitlines()]
    assert log[-1]["reason"] == "stopped" and log[-1]["starts"] == 1
    step = log[-2]["step"]
    assert (output / "checkpoints" / "latest").read_text().strip() == f"step-{step:06d}"
