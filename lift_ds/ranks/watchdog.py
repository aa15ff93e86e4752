"""Where a step is stuck: what every rank is doing, said once a part of a step takes too long, and the end of the run.

Each rank's main thread notes the step and its part (`Activity`); a thread beside it tells the others through the store
where the ranks have met, and looks at the clock. When its own time is up, a rank says what it does, with its stack; the
first to do so lists all ranks, so that one which says nothing itself (stopped, or inside a call that never comes back)
is seen, too. Then the process ends, and the launcher ends the others.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

GRACE_SECONDS = 3.0  # for the other ranks to say where they are, too
LISTED_RANKS = 64
ENDED = 1  # exit status


class Texts(Protocol):
    """A store of texts that all ranks see, as torch's are."""

    def set(self, key: str, value: str) -> Any:
        """Writes a text."""

    def get(self, key: str) -> bytes:
        """A text; waits for it."""

    def check(self, keys: list[str]) -> bool:
        """Whether all of them are there."""

    def compare_set(self, key: str, expected: str, desired: str) -> bytes:
        """Writes `desired` where the text is `expected` or missing; what is there then."""


@dataclass(frozen=True)
class Doing:
    """What a rank does.

    Args:
        step: Number of the step.
        part: Its part.
        since: When that began, in seconds of `time.monotonic` on its machine.
    """

    step: int
    part: str
    since: float

    def __str__(self) -> str:
        return f"step {self.step}, {self.part} for {self.seconds:.0f} s"

    @property
    def seconds(self) -> float:
        """How long it has taken so far."""
        return time.monotonic() - self.since


class Activity:
    """What this rank's main thread does; nothing is watched between the steps."""

    def __init__(self) -> None:
        self.doing: Doing | None = None

    def begin(self, step: int) -> None:
        """A step begins."""
        self.doing = Doing(step, "planning", time.monotonic())

    def at(self, part: str) -> str:
        """A part of the step begins; returns the one before."""
        before = self.doing
        if before is None:
            return ""
        self.doing = Doing(before.step, part, time.monotonic())
        return before.part

    def rest(self) -> None:
        """What comes now takes as long as it takes: measuring, saving, exporting."""
        self.doing = None


class Watchdog:
    """Ends this process when a part of a step takes longer than `limit` seconds; see the module.

    Args:
        activity: What the main thread does.
        rank: This rank, and below how many there are.
        world_size: Ranks.
        limit: Seconds; never where it is 0.
        store: Where ranks tell each other; `None` for one alone.
        end: What ends the process.
    """

    def __init__(
        self,
        activity: Activity,
        rank: int,
        world_size: int,
        limit: float,
        store: Texts | None,
        end: Callable[[int], Any] = os._exit,
    ) -> None:
        self.activity, self.rank, self.world_size, self.limit = activity, rank, world_size, limit
        self.store, self.end = store, end
        self.main, self.num_told = threading.get_ident(), 0
        self.stopping, self.pause = threading.Event(), min(1.0, limit / 10)
        if limit:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def close(self) -> None:
        """Watches no more."""
        self.stopping.set()

    def _watch(self) -> None:
        self._tell(self.activity.doing)
        while not self.stopping.wait(self.pause):
            doing = self.activity.doing
            self._tell(doing)
            if doing is not None and doing.seconds > self.limit:
                self._give_up(doing)
                return

    def _tell(self, doing: Doing | None) -> None:
        if self.store is not None:
            self.num_told += 1
            now = {"host": socket.gethostname(), "number": self.num_told, "doing": doing and str(doing)}
            with suppress(RuntimeError):  # rank 0, which holds the store, has gone
                self.store.set(f"doing/{self.rank}", json.dumps(now))

    def _give_up(self, doing: Doing) -> None:
        stack = "".join(traceback.format_stack(sys._current_frames()[self.main]))
        self._say(
            f"rank {self.rank} on {socket.gethostname()} is stuck: {doing}; runtime.timeout is {self.limit / 60:g} "
            f"minutes. Its main thread:\n{stack}"
        )
        self._stay(doing, GRACE_SECONDS)
        if self.store is not None:
            listing = threading.Thread(target=self._list_all, args=(doing,), daemon=True)
            listing.start()  # the store may never answer, and lets one thread ask at a time: this one must not
            listing.join(3 * GRACE_SECONDS)
            if listing.is_alive():
                self._say(f"rank {self.rank}: rank 0, where the ranks tell each other, does not answer")
        self.end(ENDED)

    def _stay(self, doing: Doing, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self._tell(doing)
            time.sleep(self.pause)

    def _list_all(self, doing: Doing) -> None:
        assert self.store is not None
        with suppress(RuntimeError):
            if self.store.compare_set("stuck", "", str(self.rank)) != str(self.rank).encode():
                self._stay(doing, 2 * GRACE_SECONDS)  # whoever lists sees that this one lives
                return
            ranks = range(min(self.world_size, LISTED_RANKS))
            before = [self._told(rank) for rank in ranks]
            self.stopping.wait(min(GRACE_SECONDS, 3 * self.pause))
            lines = [self._line(rank, told, self._told(rank)) for rank, told in zip(ranks, before, strict=True)]
            rest = f"\n  and {self.world_size - LISTED_RANKS} more" if self.world_size > LISTED_RANKS else ""
            self._say("where the ranks are:\n" + "\n".join(lines) + rest)

    def _told(self, rank: int) -> dict[str, Any] | None:
        assert self.store is not None
        if not self.store.check([f"doing/{rank}"]):
            return None
        told: dict[str, Any] = json.loads(self.store.get(f"doing/{rank}"))
        return told

    def _line(self, rank: int, before: dict[str, Any] | None, now: dict[str, Any] | None) -> str:
        if now is None:
            return f"  rank {rank}: has told nothing"
        is_silent = rank != self.rank and before is not None and before["number"] == now["number"]
        sign = "; NO SIGN OF LIFE since" if is_silent else ""
        return f"  rank {rank} on {now['host']}: {now['doing'] or 'between steps'}{sign}"

    def _say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)
