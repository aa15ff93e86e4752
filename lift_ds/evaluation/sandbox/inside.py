"""What runs in a child process: it limits itself, locks itself down, then answers questions."""

from __future__ import annotations

import importlib
import json
import os
import resource
import signal
from typing import Any, BinaryIO

from .child import Handler
from .seccomp import die_with_parent, lock_down


def serve(handler: str, limits: dict[str, Any]) -> None:
    """Greets, then answers each line with a line, until the questions end; see `Child` and `Limits`."""
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
