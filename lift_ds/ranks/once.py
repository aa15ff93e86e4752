"""Work that is done once for all ranks, or once on each machine, before training.

The ranks wait where they meet, not in a collective: there a long wait would end at the process group's time-out, and a
rank that fails alone would leave the others waiting for it.
"""

from __future__ import annotations

import base64
import pickle
import socket
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

from .launch import Launch
from .meeting import Meeting, meet
from .shares import Alone, Ranks

Result = TypeVar("Result")

WORK_LIMIT = timedelta(hours=24)  # a download may take long; a rank that fails says so, one that dies ends the launch
PART_BYTES = 1 << 20  # the store refuses values above 8 MiB


class Once:
    """Who works for whom.

    Args:
        launch: This rank; `None` for a process that does everything itself, as a dry run does.
        ranks: The process group that carries what `per_run` gives; needed by that only.
    """

    def __init__(self, launch: Launch | None, ranks: Ranks | None = None) -> None:
        self.launch = launch if launch is not None and launch.world_size > 1 else None
        self.ranks = ranks or Alone()

    def per_run(self, what: str, action: Callable[[], Result]) -> Result:
        """What `action` returns on rank 0, on every rank; all call it.

        Args:
            what: What the others wait for, in a message; a name that is used once.
            action: The work.

        Raises:
            ValueError: It failed with a ValueError or an OSError; the same message on every rank.
            FailedElsewhereError: Another rank has failed meanwhile.
        """
        if self.launch is None:
            return action()
        attempt = _attempt(action) if self.launch.is_main else None
        meet(self.launch).gather(what, WORK_LIMIT)
        result: Result = self.ranks.on_main(lambda: _settle(attempt))
        return result

    def per_node(self, what: str, action: Callable[[], Result]) -> Result:
        """What `action` returns on the first rank of this machine; needs no process group, and joins the meeting.

        Args:
            what: As of `per_run`.
            action: The work, as on every machine.

        Raises:
            ValueError: It failed with a ValueError on a machine; the same message on every rank, with the machine
                where that is not rank 0's.
            OSError: It failed so; in the same way.
            RuntimeError: No rank here has LOCAL_RANK=0, or another rank has failed meanwhile.
        """
        if self.launch is None:
            return action()
        meeting, here = meet(self.launch), socket.gethostname()
        attempt: Any = None
        if self.launch.local_rank == 0:
            attempt = _attempt(action)
            if isinstance(attempt, Exception):
                where = "" if self.launch.is_main else f" (on {here}, rank {self.launch.rank})"
                _put(meeting, f"{what}, failed {'' if self.launch.is_main else 'elsewhere'}", _portable(attempt, where))
            else:
                _put(meeting, f"{what}, on {here}", attempt)
        meeting.gather(what, WORK_LIMIT)
        for failed in (f"{what}, failed ", f"{what}, failed elsewhere"):
            if meeting.has(f"{failed}/parts"):
                raise _get(meeting, failed)
        if self.launch.local_rank and not meeting.has(f"{what}, on {here}/parts"):
            raise RuntimeError(
                f"rank {self.launch.rank} has LOCAL_RANK={self.launch.local_rank}, but no rank on {here} has "
                "LOCAL_RANK=0, which works for the others there: start the ranks of a machine with one launcher"
            )
        result: Result = _get(meeting, f"{what}, on {here}") if self.launch.local_rank else attempt
        return result


ALONE = Once(None)


def _attempt(action: Callable[[], Any]) -> Any:
    try:
        return action()
    except (ValueError, OSError) as error:
        return error


def _settle(attempt: Any) -> Any:
    if isinstance(attempt, Exception):
        raise attempt
    return attempt


def _portable(error: Exception, where: str) -> Exception:
    """The error as other processes can read it: of a type of ours or Python's, with the place behind its message."""
    if not where and type(error).__module__.partition(".")[0] in ("lift_ds", "builtins") and len(error.args) == 1:
        return error
    kinds = (ConnectionError, OSError, ValueError)
    return next(kind for kind in kinds if isinstance(error, kind))(f"{error}{where}")


def _put(meeting: Meeting, key: str, value: Any) -> None:
    content = base64.b64encode(pickle.dumps(value)).decode()
    parts = range(0, len(content), PART_BYTES)
    for number, start in enumerate(parts):
        meeting.store.set(f"{key}/{number}", content[start : start + PART_BYTES])
    meeting.store.set(f"{key}/parts", str(len(parts)))


def _get(meeting: Meeting, key: str) -> Any:
    num_parts = int(meeting.ask(meeting.store.get, f"{key}/parts"))
    parts = [meeting.ask(meeting.store.get, f"{key}/{number}") for number in range(num_parts)]
    return pickle.loads(base64.b64decode(b"".join(parts)))
