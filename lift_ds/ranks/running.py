"""How processes that run on the ranks of a launcher begin and end."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

import torch

from lift_ds.text_files import check_locale

from .errors import is_explained
from .launch import Launch, read_launch
from .meeting import MeetingError, has_met, say_error, say_goodbye

FAULT = 1  # exit status after an error that its message does not explain, as Python has it
INTERRUPTED = 128 + signal.SIGINT  # exit status after Ctrl-C, as shells have it


def run_on_ranks(action: Callable[[Launch], None], when_stopped: str = "stopped") -> None:
    """Runs a command on this rank and leaves the others in order; exits with 2 where something is missing or wrong.

    What goes wrong before the ranks have met, all of a machine find; its first one says it, or each, where it is about
    files. After that they compare: what all find is said once, what one finds is said by that one. What is not
    explained by its message is a fault: it is said with its traceback, and the exit status is 1. After Ctrl-C
    `when_stopped` is said.
    """
    try:
        check_locale()
        launch = read_launch()
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    try:
        action(launch)
    except Exception as error:
        is_fault = not is_explained(error)
        if launch.local_rank == 0 or has_met() or is_fault or isinstance(error, OSError | MeetingError):
            say_error(error, launch)
        status = FAULT if is_fault else 2
        if has_met():
            leave(status)
        sys.exit(status)
    except KeyboardInterrupt:
        if launch.is_main:
            print(when_stopped, file=sys.stderr, flush=True)
        if has_met():
            leave(INTERRUPTED)
        sys.exit(INTERRUPTED)
    say_goodbye()
    if has_started():
        leave(0)


def leave(code: int) -> NoReturn:
    """Ends this process with an exit status, without the interpreter's own end; in order with the group where it is 0.

    About once in some hundred launches a thread of torch's that still wants the interpreter aborts it there, and a
    finished run would be reported as failed.
    """
    if code == 0:
        torch.distributed.destroy_process_group()
    atexit._run_exitfuncs()  # what monitors still have to write
    if code == 0 and "mpi4py.MPI" in sys.modules:  # mpirun counts a rank that has not said goodbye as a failure
        sys.modules["mpi4py.MPI"].Finalize()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def has_started() -> bool:
    """Whether this process has joined the other ranks."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()
