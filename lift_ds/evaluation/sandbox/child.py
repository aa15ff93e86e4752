"""A child process that answers questions, one JSON line each, within limits on time, memory and what it can touch.

`Child` is what its parent has of it, `serve` what runs in it.

Every child has a session, an empty working folder and an environment of its own, no open files but its pipes, limits
(`Limits`), and the filter of system calls of `seccomp`: no new processes, no network, no changed file. It dies with the
thread that started it. It runs with the user's own rights otherwise, and reads what the user can read.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any, BinaryIO

from .seccomp import die_with_parent, lock_down

Handler = Callable[[dict[str, Any]], dict[str, Any]]  # from a question to its reply; both are JSON objects

BOOT = "import sys, json; sys.path[:] = json.loads(sys.argv[1]); from lift_ds.evaluation.sandbox import child; "
STARTUP_SECONDS = 120.0
LONGEST_REPLY = 1 << 16


@dataclass(frozen=True)
class Limits:
    """What a child may use.

    Args:
        seconds: Wall-clock time of one question.
        cpu_seconds: Processor time of the child's whole life; `None` for a child that answers many questions.
        memory_mib: Address space, in MiB.
        open_files: Open files, pipes included.
    """

    seconds: float = 10.0
    cpu_seconds: int | None = None
    memory_mib: int = 1024
    open_files: int = 64


class Failure(Enum):
    """Why a question has no reply: the child was stopped at its time limit, or ended by itself."""

    TIMEOUT = "timeout"
    ENDED = "ended"


class Child:
    """One child process, within limits; `handler` is `module:function` of what makes the child's."""

    def __init__(self, handler: str, limits: Limits) -> None:
        self.limits = limits
        self.folder = tempfile.TemporaryDirectory(prefix="lift_ds-", ignore_cleanup_errors=True)
        command = [sys.executable, "-I", "-B", "-c", BOOT + f"child.serve({handler!r}, json.loads(sys.argv[2]))"]
        paths = [os.path.abspath(path) for path in sys.path]  # the child has another working folder
        self.process = subprocess.Popen(
            [*command, json.dumps(paths), json.dumps(asdict(limits))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=self.folder.name,
            env={"PATH": os.defpath, "LANG": "C.UTF-8", "HOME": self.folder.name, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.questions, self.replies, self.unread = self.process.stdin, self.process.stdout, b""
        greeting = self._read_reply(time.monotonic() + STARTUP_SECONDS)
        if not isinstance(greeting, dict) or "error" in greeting:
            self.close()
            reason = greeting["error"] if isinstance(greeting, dict) else f"no greeting: {greeting.value}"
            raise RuntimeError(f"the process for untrusted text did not start: {reason}")

    def ask(self, question: dict[str, Any]) -> dict[str, Any] | Failure:
        """The reply to one question; after a failure the child is gone, and its `process` says how it ended."""
        deadline = time.monotonic() + self.limits.seconds
        try:
            self.questions.write(json.dumps(question).encode() + b"\n")
            self.questions.flush()
        except BrokenPipeError:
            return self._failed(Failure.ENDED)
        return self._read_reply(deadline)

    def _read_reply(self, deadline: float) -> dict[str, Any] | Failure:
        """One line of the child before `deadline`; a line that is too long or no JSON object ends it."""
        pipe = self.replies.fileno()
        while b"\n" not in self.unread:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([pipe], [], [], left)[0]:
                return self._failed(Failure.TIMEOUT)
            piece = os.read(pipe, LONGEST_REPLY)
            self.unread += piece
            if not piece or len(self.unread) > LONGEST_REPLY:
                return self._failed(Failure.ENDED)
        line, _, self.unread = self.unread.partition(b"\n")
        try:
            reply = json.loads(line)
        except ValueError:
            reply = None
        return reply if isinstance(reply, dict) else self._failed(Failure.ENDED)

    def _failed(self, failure: Failure) -> Failure:
        """Ends the child; one that closed its pipe may still be ending by itself, and keeps its exit status."""
        if failure is Failure.ENDED:
            try:
                self.process.wait(timeout=1.0)
            except subprocess.TimeoutExpired:
                failure = Failure.TIMEOUT
        self.close()
        return failure

    def close(self) -> None:
        """Kills the child and removes its folder; harmless where that is done."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for pipe in (self.questions, self.replies):
            with contextlib.suppress(BrokenPipeError):  # what was left in the buffer has no reader
                pipe.close()
        self.folder.cleanup()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()


def serve(handler: str, limits: dict[str, Any]) -> None:
    """Limits and locks down this process, greets, then answers each line with a line, until the questions end."""
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    questions = os.fdopen(os.dup(0), "rb")
    silence = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):  # what the text prints goes nowhere, and it has nothing to read
        os.dup2(silence, stream)
    try:
        die_with_parent(signal.SIGKILL)
        module, function = handler.split(":")
        answer: Handler = getattr(importlib.import_module(module), function)()  # imports come before the filter
        _apply_limits(limits)
        lock_down()
    except (RuntimeError, OSError, ImportError, ValueError) as error:
        _reply(replies, {"error": f"{error}"})
        return
    _reply(replies, {"ready": True})
    for line in questions:
        _reply(replies, answer(json.loads(line)))


def _reply(replies: BinaryIO, message: dict[str, Any]) -> None:
    replies.write(json.dumps(message).encode() + b"\n")


def _apply_limits(limits: dict[str, Any]) -> None:
    values = {
        resource.RLIMIT_AS: limits["memory_mib"] << 20,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NOFILE: limits["open_files"],
    }
    if limits["cpu_seconds"] is not None:
        values[resource.RLIMIT_CPU] = limits["cpu_seconds"]
    for name, value in values.items():
        hard = resource.getrlimit(name)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(name, (value, value))
