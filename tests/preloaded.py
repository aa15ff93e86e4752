"""Ranks and tools that begin at once: a process that has imported everything is forked for each of them.

To import torch, transformers and DeepSpeed takes four to six seconds of a core in every rank, and as much in a launcher
and its agent: more than most tests then have them do. What is started here runs as it would from a launcher, in
processes of its own with the environment that a launcher sets; they only share the imports. Launchers themselves are
tested by whoever starts one with `tests.conftest.run`.

As a program this is the process that forks: it imports the modules of its arguments, reads a request a line and answers
with an exit status a line.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import resource
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
IMPORTED = (
    "datasets", "peft", "lift_ds.cli.evaluate", "lift_ds.cli.generate", "lift_ds.cli.learnability", "lift_ds.cli.train",
    "lift_ds.cli.zero_to_hf", "lift_ds.training.run",
)  # fmt: skip
GRACE_SECONDS = 30  # as DeepSpeed's launcher gives the other ranks when one has failed


class Preloaded:
    """The process that forks; started with the first request.

    Args:
        environment: Its variables, and so those of all that it starts.
        imported: Modules that it has imported by then.
    """

    def __init__(self, environment: dict[str, str], imported: Sequence[str] = IMPORTED) -> None:
        self.environment, self.imported = environment, imported
        self.process: subprocess.Popen[str] | None = None

    def run(
        self,
        command: list[str],
        num_ranks: int | None = None,
        timeout: float = 300,
        file_size: int | None = None,
        check: bool = True,
        num_nodes: int = 1,
    ) -> subprocess.CompletedProcess[str]:
        """Runs a script, or a module after `-m`, in the repository.

        Args:
            command: Script and arguments, without the interpreter.
            num_ranks: Processes that know of each other as ranks; one that knows of no launcher where not given.
            timeout: Seconds after which all of them are killed.
            file_size: Most bytes that they may write to a file.
            check: Whether a failure is one of the test.
            num_nodes: Machines that the ranks believe to be on, equally many on each.

        Returns:
            The exit status, of the rank that failed first where some did, and what was printed, errors among it.
        """
        with tempfile.NamedTemporaryFile("r", suffix=".log", errors="replace") as output:
            request = {"command": command, "output": output.name, "file_size": file_size}
            code = self.ask(request | {"environments": environments(num_ranks, num_nodes)}, timeout)
            printed = output.read()
        assert code is not None, f"{command} took longer than {timeout} seconds:\n{printed[-6000:]}"
        assert not check or code == 0, f"{command} exited with {code}:\n{printed[-6000:]}"
        return subprocess.CompletedProcess(command, code, printed)

    def ask(self, request: dict[str, Any], timeout: float) -> int | None:
        """The exit status of what is asked for; `None` where it had to be killed."""
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.preloaded", *self.imported], cwd=REPOSITORY, env=self.environment,
                text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
            )  # fmt: skip
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        if select.select([self.process.stdout], [], [], timeout)[0]:
            return int(self.process.stdout.readline())
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process = None
        return None


def environments(num_ranks: int | None, num_nodes: int = 1) -> list[dict[str, str]]:
    """What a launcher sets for each rank; nothing for a process without one."""
    if num_ranks is None:
        return [{}]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    everyones = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    of_node = num_ranks // num_nodes
    everyones |= {"WORLD_SIZE": str(num_ranks), "LOCAL_WORLD_SIZE": str(of_node)}
    return [everyones | {"RANK": str(rank), "LOCAL_RANK": str(rank % of_node)} for rank in range(num_ranks)]


def serve() -> None:
    """Forks for every request; in the forked process, runs what was asked for and does not come back."""
    for line in sys.stdin:
        request = json.loads(line)
        reading, writing = os.pipe()
        children = set()
        for environment in request["environments"]:
            child = os.fork()
            if child == 0:
                run_command(request, environment, writing)
            children.add(child)
        os.close(writing)
        with open(reading, "rb", buffering=0) as printed, open(request["output"], "wb", buffering=0) as output:
            os.set_blocking(reading, False)
            code = wait_for_all(children, lambda: output.write(printed.read() or b""))
        print(code, flush=True)


def run_command(request: dict[str, Any], environment: dict[str, str], output: int) -> None:
    """Becomes the script: its output, its arguments, its place in the module path; and ends as it ends."""
    os.environ.update(environment)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for opened, descriptor in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(opened, descriptor)
    os.closerange(3, max(nothing, output) + 1)
    if request["file_size"] is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_size"], request["file_size"]))
    script, *arguments = request["command"]
    if script == "-m":
        sys.argv = arguments
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = [script, *arguments], str((REPOSITORY / script).parent)
        runpy.run_path(script, run_name="__main__")
    sys.exit()


def wait_for_all(running: set[int], copy_output: Callable[[], object]) -> int:
    """The exit status of the first child that fails, after which the others are ended; 0 where none does."""
    first, deadline = 0, float("inf")
    while running:
        ended, status = os.waitpid(-1, os.WNOHANG)
        copy_output()
        if ended == 0:
            if time.monotonic() > deadline:
                signal_all(running, signal.SIGKILL)
            time.sleep(0.005)
            continue
        running.remove(ended)
        code = os.waitstatus_to_exitcode(status)
        if code != 0 and first == 0:
            first, deadline = code, time.monotonic() + GRACE_SECONDS
            signal_all(running, signal.SIGTERM)
    return first


def signal_all(processes: set[int], number: int) -> None:
    """Sends a signal to all that still run."""
    for process in processes:
        os.kill(process, number)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        importlib.import_module(name)
    gc.freeze()  # what was imported is not touched again, and so stays shared
    serve()
