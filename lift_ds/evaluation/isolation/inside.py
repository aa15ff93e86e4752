"""What runs in a child process: it limits itself, locks itself down, then answers questions."""

from __future__ import annotations

import json
import os
import resource
import signal
from collections.abc import Callable
from typing import Any, BinaryIO

from .seccomp import die_with_parent, lock_down

Handler = Callable[[dict[str, Any]], dict[str, Any]]
MIB = 1 << 20


def serve(handler: str, limits: dict[str, Any]) -> None:
    """Greets, then answers each line with a line, until the questions end.

    Args:
        handler: A key of `HANDLERS`.
        limits: The fields of `child.Limits`.
    """
    die_with_parent(signal.SIGKILL)
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    questions = os.fdopen(os.dup(0), "rb")
    silence = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):  # what the text prints goes nowhere, and it has nothing to read
        os.dup2(silence, stream)
    try:
        answer = HANDLERS[handler]()  # imports; the filter comes after
        apply_limits(limits)
        lock_down()
    except (RuntimeError, OSError, ImportError, ValueError) as error:
        reply(replies, {"error": f"{error}"})
        return
    reply(replies, {"ready": True})
    for line in questions:
        reply(replies, answer(json.loads(line)))


def reply(replies: BinaryIO, message: dict[str, Any]) -> None:
    """Writes one line."""
    replies.write(json.dumps(message).encode() + b"\n")


def apply_limits(limits: dict[str, Any]) -> None:
    """Sets the kernel's limits, soft and hard.

    Raises:
        ValueError: A limit is above what this user may set.
    """
    values = {
        resource.RLIMIT_AS: limits["memory_mib"] * MIB,
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


def maths() -> Handler:
    """Compares two answers; see `scorers.published_judge` and `scorers.symbolic`."""
    from lift_ds.evaluation.scorers.published_judge import is_same_value
    from lift_ds.evaluation.scorers.symbolic import is_equivalent

    comparisons = {"reference": is_same_value, "strict": is_equivalent}

    def compare(question: dict[str, Any]) -> dict[str, Any]:
        try:
            return {"is_same": bool(comparisons[question["scorer"]](question["answer"], question["truth"]))}
        except (MemoryError, RecursionError, ValueError) as error:
            return {"is_same": False, "error": type(error).__name__}

    return compare


def program() -> Handler:
    """Runs a Python program to its end; says how it ended."""

    def run(question: dict[str, Any]) -> dict[str, Any]:
        try:
            exec(compile(question["source"], "<answer>", "exec"), {"__name__": "__main__"})
        except SystemExit as error:
            return {"ended": "exit", "is_success": error.code in (None, 0)}
        except BaseException as error:
            return {"ended": "error", "error": type(error).__name__[:100]}
        return {"ended": "finished", "token": question["token"]}

    return run


HANDLERS: dict[str, Callable[[], Handler]] = {"maths": maths, "program": program}
