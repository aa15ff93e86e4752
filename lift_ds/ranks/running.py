"""How command lines that run on the ranks of a launcher begin and end."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable

from .collectives import has_started, leave
from .launch import Launch, read_launch

INTERRUPTED = 128 + signal.SIGINT  # exit status after Ctrl-C, as shells have it


def run_on_ranks(action: Callable[[Launch], None], when_stopped: str = "stopped") -> None:
    """Runs a command on this rank and leaves the others in order; exits with 2 where something is missing or wrong.

    What goes wrong before the ranks have joined, all of them find; one says it. After that, and where it is about this
    machine's files, each says its own.

    Args:
        action: What the command does; given who this process is.
        when_stopped: What is said after Ctrl-C.
    """
    try:
        launch = read_launch()
    except RuntimeError as error:
        sys.exit(f"error: {error}")
    try:
        action(launch)
    except (ValueError, RuntimeError, OSError) as error:
        if launch.is_main or has_started() or isinstance(error, OSError):
            rank = "" if launch.is_main else f" on rank {launch.rank}"
            print(f"error{rank}: {error}", file=sys.stderr, flush=True)
        if has_started():
            leave(2)
        sys.exit(2)
    except KeyboardInterrupt:
        if launch.is_main:
            print(when_stopped, file=sys.stderr, flush=True)
        if has_started():
            leave(INTERRUPTED)
        sys.exit(INTERRUPTED)
    if has_started():
        leave(0)
