"""Two real ranks whose loaders wait for each other, of which one stops, fails or is gone.

torchrun --nproc_per_node 2 tests/distributed/links.py FOLDER
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from lift_ds.data.order.loader import StepLoader
from tests.distributed.elastic import make_loader


def read(loader: StepLoader, count: int) -> str:
    """Reads some steps, or all there are; says how many, and what went wrong."""
    found = 0
    try:
        for _ in zip(range(count), loader, strict=False):
            found += 1
    except Exception as error:
        return f"{type(error).__name__}: {error}" + (f", after {found} steps" if found else "")
    return f"{found} steps"


def fail_after(loader: StepLoader, num_slots: int) -> None:
    """Makes the loader's stream fail."""
    take, taken = loader.stream.take, []

    def failing(lane, is_own):
        taken.append(lane)
        if len(taken) > num_slots:
            raise ValueError("row 7 is bad")
        return take(lane, is_own)

    loader.stream.take = failing


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, found = dist.get_rank(), {}

    def loader(num_steps: int | None = None) -> StepLoader:
        return make_loader(folder, "rows.jsonl", None, None, 0, num_steps)

    stopping = loader()
    read(stopping, 2)
    if rank == 1:
        stopping.close()
    dist.barrier()  # the other one's thread waits for this one's
    stopping.close()
    found["stop"] = "closed"

    failing = loader()
    if rank == 1:
        fail_after(failing, 24)  # the slots of two steps: it follows all lanes
    found["error"] = read(failing, 3)
    failing.close()

    ending = loader(num_steps=5)
    found["end"] = read(ending, 9)
    ending.close()

    vanishing = loader()
    read(vanishing, 1)
    if rank == 1:
        (folder / "rank-1.json").write_text(json.dumps(found))
        os._exit(0)
    found["gone"] = read(vanishing, 9).replace("after", "")
    vanishing.close()
    (folder / "rank-0.json").write_text(json.dumps(found))
    os._exit(0)


if __name__ == "__main__":
    main()
