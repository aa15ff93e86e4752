"""Where ranks meet before anything slow, at MASTER_ADDR:MASTER_PORT; and what they tell each other there of errors."""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from torch.distributed import PrefixStore, TCPStore

from .errors import is_explained, is_of_collective
from .launch import NEEDED, TIME_LIMIT, Launch, number_in

LISTENING = "0A"  # state of a socket in /proc/net/tcp
SAY_EVERY_SECONDS = 30.0
POLL_SECONDS = 0.05
OTHER_PORT = (
    "give another one to the launcher: deepspeed --master_port 29501, "
    "torchrun --rdzv_backend c10d --rdzv_endpoint localhost:29501, or torchrun --master_port 29501"
)
OTHERS_SECONDS = 3.0  # in which ranks find the same error, if they all find it


class FailedElsewhereError(RuntimeError):
    """Another rank has failed, and says so itself; the message is empty where that is read on this machine."""

    def __init__(self, rank: int, host: str, message: str, launch: Launch) -> None:
        is_told = launch.local_rank == 0 and host != socket.gethostname()
        super().__init__(f"ended by rank {rank} on {host}: {message}" if is_told else "")


class MeetingError(RuntimeError):
    """This rank does not get to where the ranks meet."""


class Meeting:
    """The ranks of a launcher, through a store of texts that rank 0 or torchrun holds; waits end at `limit`.

    Raises:
        MeetingError: The port is taken, rank 0 cannot be reached, or another process says that it is this rank.
    """

    def __init__(self, launch: Launch, limit: timedelta) -> None:
        self.launch, self.limit = launch, limit
        self.place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        self.store = PrefixStore(f"lift_ds/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", self.open_store())
        if self.store.add(f"came/{launch.rank}", 1) > 1:
            time.sleep(OTHERS_SECONDS)  # if it is another run's store, our rank 0 says that the port is taken
            raise MeetingError(
                f"two processes at {self.place} say that they are rank {launch.rank}: another run meets there; "
                f"{OTHER_PORT}"
            )

    def open_store(self) -> TCPStore:
        """The store; of rank 0, the one that all others connect to, unless torchrun has it."""
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        holds = self.launch.is_main and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != str(True)
        if holds and is_taken(port):
            raise MeetingError(
                f"port {port}, where the ranks are to meet, is taken by {listener_of(port) or 'another process'}; "
                f"{OTHER_PORT}"
            )
        reason = "" if holds else self.await_listener(address, port)
        try:
            if not reason:
                return TCPStore(
                    address, port, is_master=holds, timeout=self.limit, wait_for_workers=False, multi_tenant=True
                )
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
        raise MeetingError(
            f"rank {self.launch.rank} cannot reach {self.place}, where the ranks meet (MASTER_ADDR, MASTER_PORT): "
            f"{reason}. Is rank 0 started, and the port open between the machines? For one process: "
            f"unset {' '.join(NEEDED)}"
        )

    def another_client(self) -> PrefixStore | None:
        """The same store for another thread, which may wait for it; `None` for a rank without others."""
        if self.launch.world_size == 1:
            return None
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)
        return PrefixStore(f"lift_ds/watch/{restart}", TCPStore(address, port, is_master=False, wait_for_workers=False))

    def await_listener(self, address: str, port: int) -> str:
        """Waits until somebody listens; returns why nobody could be reached in time, else nothing."""
        said = since = time.monotonic()
        while True:
            try:
                socket.create_connection((address, port), timeout=5).close()
                return ""
            except OSError as error:
                reason = error.strerror or str(error)
            now = time.monotonic()
            if now - since > self.limit.total_seconds():
                return f"{reason}, for {(now - since) / 60:.1f} minutes"
            if now - said > SAY_EVERY_SECONDS:
                said = now
                print(f"rank {self.launch.rank} waits for rank 0 at {self.place}: {reason}", flush=True)
            time.sleep(2 * POLL_SECONDS)

    def gather(self, what: str, limit: timedelta | None = None) -> None:
        """Waits until all ranks are through with something; rank 0 says for whom, every half minute.

        Args:
            what: What they do; a name that is used once.
            limit: When the wait ends; the meeting's where none is given.

        Raises:
            FailedElsewhereError: One of them has failed instead.
            RuntimeError: One of them is not through in time.
        """
        self.store.set(f"{what}/{self.launch.rank}", "")
        since = said = time.monotonic()
        count, size = self.store.add(what, 1), self.launch.world_size
        seconds = (limit or self.limit).total_seconds()
        while count < size:
            self.check_others()
            now = time.monotonic()
            if now - since > seconds:
                raise RuntimeError(
                    f"{self.missing(what)} of WORLD_SIZE={size} not at {self.place} ({what}) within "
                    f"{(now - since) / 60:.1f} minutes. Is every rank started (deepspeed, torchrun)? For one process: "
                    f"unset {' '.join(NEEDED)}; {TIME_LIMIT} is the time in minutes"
                )
            if self.launch.is_main and now - said > SAY_EVERY_SECONDS:
                said = now
                print(f"waiting at {self.place} for {self.missing(what)} ({what}), {now - since:.0f} s", flush=True)
            time.sleep(POLL_SECONDS * (1 + size // 64))  # rank 0 answers all of them
            count = self.ask(self.store.add, what, 0)

    def missing(self, what: str) -> str:
        """The ranks that are not through with something, at most eight of them by number."""
        ranks = [str(rank) for rank in range(self.launch.world_size) if not self.has(f"{what}/{rank}")]
        return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(ranks[:8])}{', ...' if len(ranks) > 8 else ''}"

    def check_others(self) -> None:
        """Raises a FailedElsewhereError where a rank has said that it failed."""
        if self.has("failed"):
            raise FailedElsewhereError(**json.loads(self.store.get("failed")), launch=self.launch)

    def has(self, key: str) -> bool:
        """Whether somebody has written a key; raises as `ask` does."""
        return bool(self.ask(self.store.check, [key]))

    def ask(self, question: Callable[..., Any], *given: object) -> Any:
        """What the store answers.

        Raises:
            FailedElsewhereError: It has gone, with rank 0.
        """
        try:
            return question(*given)
        except RuntimeError as error:
            raise FailedElsewhereError(0, os.environ["MASTER_ADDR"], "it has left", self.launch) from error

    def is_mine_to_say(self, message: str) -> bool:
        """Tells the others of an error, unless it is theirs (empty), and whether this rank says it.

        Rank 0 does, where it has the same.
        """
        rank = self.launch.rank
        message = message.encode(errors="replace").decode()
        try:
            if message:
                failed = {"rank": rank, "host": socket.gethostname(), "message": message}
                self.store.compare_set("failed", "", json.dumps(failed))
            self.store.set(f"error/{rank}", message)
            deadline = time.monotonic() + OTHERS_SECONDS
            while not self.launch.is_main and time.monotonic() < deadline:
                if self.has("error/0"):
                    of_main = self.store.get("error/0").decode()
                    self.store.set(f"left/{rank}", "")
                    return of_main != message
                time.sleep(POLL_SECONDS)
        except RuntimeError:  # the store has gone, and rank 0 with it
            return True
        return True

    def let_others_leave(self) -> None:
        """Stays, as rank 0 that may hold the store, until the others need it no more, or for some seconds."""
        deadline = time.monotonic() + OTHERS_SECONDS
        with suppress(RuntimeError):  # torchrun may have ended meanwhile, and the store with it
            waiting = [rank for rank in range(1, self.launch.world_size) if self.has(f"start/{rank}")]
            while waiting and time.monotonic() < deadline:
                waiting = [rank for rank in waiting if not self.has(f"left/{rank}")]
                time.sleep(POLL_SECONDS)


_joined: list[Meeting] = []


def meet(launch: Launch, limit: timedelta | None = None) -> Meeting:
    """The meeting of this process's ranks; the first call waits for them, ten minutes where nothing else is said.

    Raises:
        RuntimeError: See `Meeting`, and `gather`.
    """
    if not _joined:
        _joined.append(Meeting(launch, limit or timedelta(minutes=number_in(TIME_LIMIT, 1, 10))))
        _joined[0].gather("start")
    return _joined[0]


def has_met() -> bool:
    """Whether this process has met the other ranks."""
    return bool(_joined)


def check_others() -> None:
    """Raises a FailedElsewhereError where another rank has failed, as far as this one has met the others."""
    for meeting in _joined:
        meeting.check_others()


def say_error(error: Exception, launch: Launch) -> None:
    """Prints an error, with its traceback where it is not explained: once where all ranks have it, else each of them.

    What a rank's collective fails of where another has failed before is that one's error.
    """
    try:
        if is_of_collective(error):
            check_others()
    except FailedElsewhereError as elsewhere:
        error = elsewhere
    is_own = not isinstance(error, FailedElsewhereError)
    message = str(error) if is_explained(error) else "".join(traceback.format_exception_only(error)).strip()
    if not _joined or _joined[0].is_mine_to_say(message if is_own else ""):
        rank = "" if launch.is_main else f" on rank {launch.rank}"
        if message:
            shown = "" if is_explained(error) else "".join(traceback.format_exception(error))
            print(f"{shown}error{rank}: {message}", file=sys.stderr, flush=True)
    if _joined and launch.is_main:
        _joined[0].let_others_leave()


def say_goodbye() -> None:
    """Leaves the meeting; rank 0, which may hold the store, as the last one."""
    for meeting in _joined:
        with suppress(RuntimeError):
            meeting.store.set(f"left/{meeting.launch.rank}", "")
        if meeting.launch.is_main:
            meeting.let_others_leave()


def is_taken(port: int) -> bool:
    """Whether somebody listens on a port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False


def listener_of(port: int) -> str:
    """The process that listens on a port, as far as this user may see it; empty where not."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            rows = [line.split() for line in Path(table).read_text(encoding="utf-8").splitlines()[1:]]
        except OSError:
            continue
        inodes |= {row[9] for row in rows if row[3] == LISTENING and int(row[1].rpartition(":")[2], 16) == port}
    sockets = {f"socket:[{inode}]" for inode in inodes}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(os.readlink(opened) in sockets for opened in (process / "fd").iterdir()):
                words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
                return f"process {process.name} ({' '.join(words).strip()[:200]})"
        except OSError:
            continue
    return ""
