"""Processes that read, tokenise and pack ahead of training; each runs some of a rank's lanes.

Lanes do not depend on each other, so any number of workers gives the same packs. A worker stops when it is told to, or
when its parent is gone; signals are left to the parent, which decides what they mean.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import queue
import signal
import threading
from itertools import count
from multiprocessing.queues import Queue
from typing import Any

from .lanes import SlotPlan
from .stream import LanePack, PackStream

STEPS_AHEAD = 2
POLL_SECONDS = 0.5


class LanePackWorkers:
    """Worker processes and the packs that wait in their queues.

    Args:
        stream: Packs of every lane, standing where `first_step` begins; a copy goes to each worker.
    """

    def __init__(self, stream: PackStream, slot_plan: SlotPlan, first_step: int, num_workers: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.spacing = 1 if slot_plan.follows_all else slot_plan.world_size
        self.num_workers = num_workers = min(num_workers, slot_plan.num_lanes // self.spacing)
        depth = max(4, STEPS_AHEAD * slot_plan.global_batch // (num_workers * self.spacing))
        self.queues: list[Queue[Any]] = [context.Queue(depth) for _ in range(num_workers)]
        # Not among the arguments: a process that dies before it has read large ones leaves `start` waiting for ever.
        self.inboxes: list[Queue[bytes]] = [context.Queue() for _ in range(num_workers)]
        self.processes = [
            context.Process(
                target=run_worker,
                args=(inbox, slot_plan, first_step, (worker, num_workers, self.spacing), packs, os.getpid()),
                name=f"data-worker-{worker}",
                daemon=True,
            )
            for worker, (inbox, packs) in enumerate(zip(self.inboxes, self.queues, strict=True))
        ]
        content = pickle.dumps(stream)
        for process, inbox in zip(self.processes, self.inboxes, strict=True):
            process.start()
            inbox.put(content)

    def take(self, lane: int, stopping: threading.Event) -> tuple[LanePack | None, dict[str, Any]]:
        """The next pack of a lane and the lane's state after it; calls follow the slot plan.

        Raises:
            RuntimeError: The worker is gone, or `stopping` was set while waiting for it.
            Exception: What went wrong in the worker.
        """
        worker = _worker_of(lane, self.num_workers, self.spacing)
        while True:
            try:
                produced = self.queues[worker].get(timeout=POLL_SECONDS)
            except queue.Empty:
                if stopping.is_set():
                    raise RuntimeError("the loader was closed while a step was prepared.") from None
                if not self.processes[worker].is_alive():
                    raise RuntimeError(
                        f"data worker {worker} ended with code {self.processes[worker].exitcode} (-9 is a kill, often "
                        "for lack of memory); lower data.workers, or set it to 0 to see what happens."
                    ) from None
                continue
            if isinstance(produced, Exception):
                raise produced
            return produced

    def close(self) -> None:
        """Ends the processes."""
        for process, inbox in zip(self.processes, self.inboxes, strict=True):
            process.kill()
            inbox.cancel_join_thread()
        for process in self.processes:
            process.join()


def _worker_of(lane: int, num_workers: int, spacing: int) -> int:
    return lane // spacing % num_workers


def run_worker(
    inbox: Queue[bytes],
    slot_plan: SlotPlan,
    first_step: int,
    share: tuple[int, int, int],
    packs: Queue[Any],
    parent: int,
) -> None:
    """Fills a queue with (pack or `None`, state of its lane) of each slot of this worker's lanes, or what ended it.

    `share` is this worker, their number, and the distance of a rank's lanes; `inbox` holds the stream, pickled.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    worker, num_workers, spacing = share
    try:
        stream = pickle.loads(inbox.get())
        gc.freeze()  # as in the rank itself
        for step in count(first_step):
            if os.getppid() != parent:
                return
            for _, lane, is_own in slot_plan.slots(step):
                if _worker_of(lane, num_workers, spacing) == worker:
                    _put(packs, stream.take(lane, is_own), parent)
    except Exception as error:  # the rank raises it
        _put(packs, error, parent)


def _put(packs: Queue[Any], produced: Any, parent: int) -> None:
    while True:
        try:
            packs.put(produced, timeout=POLL_SECONDS)
            return
        except queue.Full:
            if os.getppid() != parent:
                os._exit(0)
