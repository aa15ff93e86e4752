"""Two CPU ranks in forked processes, whose default group's time-out is two seconds."""

import multiprocessing
import os
from datetime import timedelta

import torch

DEFAULT_SECONDS = 2.0


def _run(rank, action, folder, results):
    os.environ.update(MASTER_ADDR="127.0.0.1")
    store = torch.distributed.FileStore(str(folder / "store"), 2)
    limit = timedelta(seconds=DEFAULT_SECONDS)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=limit)
    try:
        results.put((rank, action(rank)))
    except Exception as error:
        results.put((rank, error))


def on_two_ranks(action, folder):
    """What `action(rank)` returns or raises on ranks 0 and 1, which meet in a file below `folder`."""
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=_run, args=(rank, action, folder, results)) for rank in range(2)]
    for process in processes:
        process.start()
    found = dict(results.get(timeout=60) for _ in processes)
    for process in processes:
        process.join(60)
    return [found[0], found[1]]
