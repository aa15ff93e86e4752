"""Keeps a training run going: starts it again from its newest checkpoint after a failure.

    python launchers/supervise.py --output runs/long -- deepspeed launchers/train.py --deepspeed ds_configs/zero3.json
    python launchers/supervise.py --output runs/long --hostfile hosts -- deepspeed launchers/train.py ...

What follows `--` is the launcher's command; `--output` and `--resume auto` are added to it. It is started again until
it ends with 0 (done, or stopped by a signal), at most `--restarts` times, after a pause that doubles while nothing is
gained. It is not started again where its first start ends with 2 and without a step (an error of settings or data), nor
when it failed three times in a row without a step gained and with the same error: that would only loop. With
`--hostfile`, machines that ssh does not reach are left out of the next start (data, difficulties and checkpoints do not
depend on the ranks).

OUTPUT/supervise.jsonl has a line for every start and end: status, step reached, seconds. At its end it says the
goodput: seconds of the steps that it gained, each once, over all that passed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from lift_ds.storage.run_folder import METRICS_FILE, SUPERVISE_FILE, read_metrics
from lift_ds.storage.run_record import read_run

from .tool import Tool, check_counts, flag

SETTINGS_STATUS = 2
LONGEST_PAUSE = 600.0
MOST_SAME = 2  # times that the same error may follow itself
LAST_LINES = 20  # of what a start printed, which are compared and kept
STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


@dataclass
class Supervisor:
    """Starts a command until it is done.

    Args:
        command: What is started, without the hostfile's flag.
        output: The run's folder.
        restarts: How often it may be started again.
        backoff: Seconds before the first restart without a step gained.
        hosts: Lines of the hostfile by machine; empty without one.
        min_nodes: Fewest machines to go on with.
        is_reachable: Whether a machine can be reached.
        pause: Waits some seconds; by default until it is to stop, too.
    """

    command: list[str]
    output: Path
    restarts: int
    backoff: float
    hosts: dict[str, str]
    min_nodes: int
    is_reachable: Callable[[str], bool]
    pause: Callable[[float], Any] | None = None
    process: subprocess.Popen[str] | None = field(default=None, init=False)
    stopped_by: int | None = field(default=None, init=False)

    def run(self) -> int:
        """Returns the exit status of the last start."""
        began, num_started, num_idle, num_same, before = time.time(), 0, 0, 0, ("", -1)
        self.output.mkdir(parents=True, exist_ok=True)
        while True:
            first_step = self.step_reached()
            started = time.time()
            self.log("start", step=first_step, machines=list(self.hosts) or None)
            status, words = self.start(num_started)
            num_started += 1
            step = self.step_reached()
            self.log("end", status=status, step=step, seconds=round(time.time() - started, 1), last_words=words)
            num_same = num_same + 1 if words and before == (words, step) else 0
            is_settings = status == SETTINGS_STATUS and num_started == 1 and step == first_step
            reason = self.why_not_again(status, num_started, num_same, is_settings)
            if reason is not None:
                self.summarise(reason, num_started, began)
                return status
            before, num_idle = (words, step), 0 if step > first_step else num_idle + 1
            seconds = min(LONGEST_PAUSE, self.backoff * 2 ** max(0, num_idle - 1))
            print(f"supervise: exit status {status} at step {step}; again in {seconds:.0f} s", flush=True)
            (self.pause or self.wait)(seconds)
            if self.stopped_by:
                self.summarise("stopped", num_started, began)
                return status

    def why_not_again(self, status: int, num_started: int, num_same: int, is_settings: bool) -> str | None:
        """Why the command is not started again; `None` where it is."""
        if status == 0:
            return "stopped" if self.stopped_by else "done"
        if self.stopped_by:
            return "stopped"
        if is_settings:
            return "an error of settings or data, which comes again"
        if num_same >= MOST_SAME:
            return f"failed {MOST_SAME + 1} times at the same step with the same error: it would loop"
        if num_started > self.restarts:
            return f"failed after {self.restarts} restarts, as many as --restarts allows"
        return None

    def start(self, number: int) -> tuple[int, str]:
        """Runs the command once; its exit status and the last lines that it printed, without times and numbers."""
        command = list(self.command)
        if self.hosts:
            here = {name: line for name, line in self.hosts.items() if self.is_reachable(name)}
            for name in self.hosts.keys() - here.keys():
                print(f"supervise: {name} cannot be reached and is left out", flush=True)
            if len(here) < self.min_nodes:
                print(f"supervise: {len(here)} machines of --min-nodes={self.min_nodes} can be reached", flush=True)
                return 1, ""
            path = self.output / f"hostfile-{number}"
            path.write_text("".join(f"{line}\n" for line in here.values()), encoding="utf-8")
            command[1:1] = ["--hostfile", str(path), "--force_multi"]
            if len(here) < len(self.hosts):
                command.append(f"runtime.nodes={len(here)}")
        lines: deque[str] = deque(maxlen=LAST_LINES)
        into = subprocess.PIPE
        self.process = subprocess.Popen(
            command, text=True, errors="replace", start_new_session=True, stdout=into, stderr=subprocess.STDOUT
        )
        assert self.process.stdout is not None
        for line in self.process.stdout:
            print(line, end="", flush=True)
            if "error" in line.lower():
                lines.append("".join(letter for letter in line.strip() if not letter.isdigit()))
        status = self.process.wait()
        self.process = None
        return (128 - status if status < 0 else status), "\n".join(lines)

    def stop(self, number: int, frame: Any) -> None:
        """Passes a signal on to the ranks here, one of which is enough to stop all, and starts nothing again."""
        self.stopped_by = number
        if self.process is None:  # it is waiting for the next start
            return
        ranks = ranks_below(self.process.pid)
        for pid in ranks:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        if not ranks:  # they were started elsewhere, or not yet
            os.killpg(self.process.pid, signal.SIGTERM)

    def wait(self, seconds: float) -> None:
        """Waits, until it is to stop."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self.stopped_by:
            time.sleep(min(1.0, seconds))

    def step_reached(self) -> int:
        """The last step in the run's metrics; 0 without any."""
        return max((record["step"] for record in read_metrics(self.output / METRICS_FILE, "step")), default=0)

    def steps_a_record(self) -> int:
        """Steps for each of which one is recorded (`log_every`)."""
        try:
            return int(read_run(self.output)["run"]["log_every"])
        except (ValueError, KeyError):
            return 1

    def log(self, event: str, **facts: Any) -> None:
        """A line of the log."""
        with (self.output / SUPERVISE_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"event": event, "time": round(time.time(), 1), **facts}) + "\n")

    def summarise(self, reason: str, num_started: int, began: float) -> None:
        """Says and logs what it came to."""
        seconds = time.time() - began
        gained = [each for each in read_metrics(self.output / METRICS_FILE, "step") if each["time"] >= began]
        useful = sum(each["seconds"] for each in gained) * self.steps_a_record()
        goodput = useful / seconds if seconds else 0.0
        self.log("summary", reason=reason, starts=num_started, seconds=round(seconds, 3), goodput=round(goodput, 4))
        print(
            f"supervise: {reason}; {num_started} start{'s' if num_started > 1 else ''}, {seconds:.0f} s, goodput "
            f"{goodput:.1%} (steps that count, over all that passed)",
            flush=True,
        )


def read_hosts(path: Path) -> dict[str, str]:
    """Lines of a hostfile by machine.

    Raises:
        ValueError: It cannot be read, or names none.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ValueError(f"--hostfile {path}: cannot be read: {error.strerror}") from error
    hosts = {line.split()[0]: line.strip() for line in lines if line.strip() and not line.startswith("#")}
    if not hosts:
        raise ValueError(f"--hostfile {path}: names no machine; see launchers/hostfile.example")
    return hosts


def reaches(host: str) -> bool:
    """Whether ssh reaches a machine within some seconds, without a password."""
    options = ["-o", "BatchMode=yes", "-o", "ConnectTimeout=5"]
    return subprocess.run(["ssh", *options, host, "true"], capture_output=True, check=False).returncode == 0


def ranks_below(pid: int) -> list[int]:
    """Processes that a process has started, itself or through others, whose environment calls them a rank.

    Not what such a rank has started: workers have its environment.
    """
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = stat.read_text(errors="replace").rpartition(")")[2].split()
            children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found, waiting = [], [pid]
    while waiting:
        one = waiting.pop()
        if one != pid and is_rank(one):
            found.append(one)
        else:
            waiting += children.get(one, [])
    return sorted(found)


def is_rank(pid: int) -> bool:
    """Whether a process was started with the variable RANK."""
    with suppress(OSError):
        return any(entry.startswith(b"RANK=") for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"))
    return False


FLAGS = (
    flag("--output", type=Path, required=True, help="the run's folder"),
    flag("--restarts", type=int, default=20, help="most restarts (default: %(default)s)"),
    flag("--backoff", type=float, default=5.0, help="seconds before a restart; doubled while no step is gained"),
    flag("--hostfile", type=Path, help="machines of the run, for deepspeed; those that cannot be reached are left out"),
    flag("--min-nodes", type=int, default=1, help="fewest machines to go on with"),
)


def supervise(command: list[str], arguments: argparse.Namespace) -> None:
    """Supervises a command, and exits as its last start did."""
    check_counts(arguments, "min_nodes")
    if arguments.restarts < 0 or arguments.backoff < 0:
        raise ValueError(f"--restarts={arguments.restarts}, --backoff={arguments.backoff}: at least 0.")
    if not command:
        raise ValueError("no command: write it behind `--`, as `-- deepspeed launchers/train.py --deepspeed ...`")
    added: list[str] = [word for word in ("--output", "--resume") if word in command]
    added += [word for word in command if word.startswith(("output=", "checkpoint.resume="))]
    if added:
        raise ValueError(f"{' and '.join(added)} in the command: both are added to it; give --output before `--`")
    hosts = read_hosts(arguments.hostfile) if arguments.hostfile is not None else {}
    whole = [*command, "--output", str(arguments.output), "--resume", "auto"]
    supervisor = Supervisor(
        whole, arguments.output, arguments.restarts, arguments.backoff, hosts, arguments.min_nodes, reaches
    )
    for number in STOPS:
        signal.signal(number, supervisor.stop)
    sys.exit(supervisor.run())


def main(argv: list[str] | None = None) -> None:
    """Entry point; what stands behind `--` is the command."""
    words = list(sys.argv[1:] if argv is None else argv)
    place = words.index("--") if "--" in words else len(words)
    Tool(partial(supervise, words[place + 1 :]), __doc__, FLAGS, argparse.ArgumentParser)(words[:place])


if __name__ == "__main__":
    main()
