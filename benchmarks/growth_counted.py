"""A training run that counts what its ranks send each other besides weights and gradients; for `growth.py`.

    python benchmarks/growth_counted.py 4 FOLDER --deepspeed ds_configs/zero3.json ...

What follows FOLDER is for `launchers/train.py`. The ranks, 4 here, are forked from a process that has imported
everything, so that they share that memory. Each rank leaves `rank-N.json` there. A call of torch.distributed is
ours where the first frame above it that is not torch's is this package's; its bytes are what it hands to this rank:

    sum       all_reduce: the tensor
    sizes     all_to_all of one number for each rank: those of the others
    parts     all_to_all of what was announced so: what the others sent
    objects   all_gather_object: for each rank the longest pickle, to which torch pads all, and its length
    object    broadcast_object_list: the pickles and their lengths

Files of checkpoints that a rank opens are counted by the interpreter's audit hook, and where safetensors opens them.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import pickle
import signal
import socket
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import safetensors
import torch

PHASES = {
    ("lift_ds.training.trainer", "save"): "save",
    ("lift_ds.training.trainer", "resume"): "resume",
    ("lift_ds.training.trainer", "finish"): "end",
    ("lift_ds.training.loop", "train_steps"): "step",
    ("lift_ds.data.order.loader", "make_step"): "step",
}
TRANSPARENT = ("lift_ds.ranks", "torch", "contextlib", "__main__", "growth_counted")
LENGTH_BYTES = 8


class Counts:
    """What one rank has counted."""

    def __init__(self) -> None:
        self.calls: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        self.opened: dict[str, set[str]] = defaultdict(set)
        self.hashed_bytes: dict[str, int] = defaultdict(int)
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.store_writes, self.num_groups, self.open_files, self.forked = 0, 1, 0, 0.0
        self.lock = threading.Lock()

    def note(self, frame: FrameType, kind: str, num_bytes: int) -> None:
        """A collective, called at a frame."""
        what = owner(frame)
        if what is None:
            return
        with self.lock:
            entry = self.calls[f"{phase_of(frame)}/{what}/{kind}"]
            entry[0] += 1
            entry[1] += num_bytes

    def note_open(self, path: str, frame: FrameType) -> None:
        """A file of a checkpoint, opened to be hashed or to be read."""
        names = [(name, function) for name, function in stack(frame) if name.startswith("lift_ds")]
        if ("lift_ds.storage.manifest", "hash_file") in names:
            self.hashed_bytes[phase_of(frame)] += os.path.getsize(path)
        elif names:
            self.opened[phase_of(frame)].add(path)

    def write(self, folder: Path) -> None:
        """Leaves everything in a file of this rank."""
        folder.mkdir(parents=True, exist_ok=True)
        counted = {
            "calls": self.calls,
            "opened": {phase: len(paths) for phase, paths in self.opened.items()},
            "hashed_bytes": self.hashed_bytes,
            "seconds": self.seconds,
            "store_writes": self.store_writes,
            "num_groups": self.num_groups,
            "open_files": self.open_files,
            "forked": self.forked,
        }
        (folder / f"rank-{os.environ['RANK']}.json").write_text(json.dumps(counted, indent=1) + "\n")


def stack(frame: FrameType | None) -> list[tuple[str, str]]:
    """Module and function of a frame and of all above it, the innermost first."""
    found = []
    while frame is not None:
        found.append((str(frame.f_globals.get("__name__", "")), frame.f_code.co_name))
        frame = frame.f_back
    return found


def owner(frame: FrameType) -> str | None:
    """The part of this package that asked for a collective; `None` for DeepSpeed's own."""
    for name, function in stack(frame):
        if name.startswith("lift_ds") and not name.startswith("lift_ds.ranks"):
            return f"{name.rpartition('.')[2]}.{function}"
        if not name.startswith(TRANSPARENT):
            return None
    return None


def phase_of(frame: FrameType) -> str:
    """The part of a run."""
    return next((PHASES[place] for place in stack(frame) if place in PHASES), "start")


def num_pickled(values: list[Any]) -> list[int]:
    """Bytes of each as torch sends it."""
    return [len(pickle.dumps(value)) for value in values]


def bytes_of_exchange(output: torch.Tensor, splits: list[int] | None) -> int:
    """What the other ranks sent."""
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    own = output.numel() // world_size if splits is None else splits[rank]
    return output.nbytes - own * output.element_size()


def count_collectives(counts: Counts) -> None:
    """Counts every call from here on."""
    base = torch.distributed
    all_reduce, all_to_all = base.all_reduce, base.all_to_all_single
    all_gather_object, broadcast, new_group = base.all_gather_object, base.broadcast_object_list, base.new_group

    def counted_all_reduce(tensor: torch.Tensor, *given: Any, **named: Any) -> Any:
        counts.note(sys._getframe(1), "sum", tensor.nbytes)
        return all_reduce(tensor, *given, **named)

    def counted_all_to_all(
        output: torch.Tensor, sent: torch.Tensor, out: Any = None, into: Any = None, **named: Any
    ) -> Any:
        counts.note(sys._getframe(1), "sizes" if out is None else "parts", bytes_of_exchange(output, out))
        return all_to_all(output, sent, out, into, **named)

    def counted_gather(gathered: list[Any], mine: Any, **named: Any) -> Any:
        result = all_gather_object(gathered, mine, **named)
        counts.note(sys._getframe(1), "objects", len(gathered) * (LENGTH_BYTES + max(num_pickled(gathered))))
        return result

    def counted_broadcast(values: list[Any], **named: Any) -> Any:
        result = broadcast(values, **named)
        counts.note(sys._getframe(1), "object", sum(LENGTH_BYTES + size for size in num_pickled(values)))
        return result

    def counted_group(*given: Any, **named: Any) -> Any:
        counts.num_groups += 1
        return new_group(*given, **named)

    for name, function in {
        "all_reduce": counted_all_reduce, "all_to_all_single": counted_all_to_all, "new_group": counted_group,
        "all_gather_object": counted_gather, "broadcast_object_list": counted_broadcast,
    }.items():  # fmt: skip
        setattr(base, name, function)


def count_files(counts: Counts) -> None:
    """Counts files of checkpoints that are opened to be read."""

    def hook(event: str, given: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(given[0], str | os.PathLike) and "/checkpoints/" in str(given[0]):
            is_read = not int(given[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and os.path.isfile(given[0])
            if is_read:
                counts.note_open(str(given[0]), sys._getframe(1))

    safe_open = safetensors.safe_open

    def counted_safe_open(path: Any, *given: Any, **named: Any) -> Any:
        if "/checkpoints/" in str(path):
            counts.note_open(str(path), sys._getframe(1))
        return safe_open(path, *given, **named)

    sys.addaudithook(hook)
    setattr(safetensors, "safe_open", counted_safe_open)  # noqa: B010 (mypy takes a plain one for an error)


def count_store(counts: Counts) -> None:
    """Counts what ranks write where they meet; what they ask there goes by time."""
    from lift_ds.ranks import meeting

    class CountedStore(torch.distributed.PrefixStore):
        def set(self, key: str, value: Any) -> None:
            counts.store_writes += not key.startswith("doing/")
            super().set(key, value)

        def add(self, key: str, amount: int) -> int:
            counts.store_writes += amount != 0
            return int(super().add(key, amount))

    meeting.PrefixStore = CountedStore  # type: ignore[misc]


def time_parts(counts: Counts) -> None:
    """Seconds of saving and of restoring, and the files that are open when a rank begins to save."""
    from lift_ds.training.trainer import Trainer

    def timed(name: str, action: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            if name == "save":
                counts.open_files = len(os.listdir("/proc/self/fd"))
            began = time.perf_counter()
            result = action(*given)
            counts.seconds[name].append(time.perf_counter() - began)
            return result

        return call

    for name in ("save", "resume"):
        setattr(Trainer, name, timed(name, getattr(Trainer, name)))


def become(rank: int, num_ranks: int, port: int, folder: Path, counts: Counts, argv: list[str]) -> NoReturn:
    """Trains as one rank; leaves what it has counted."""
    from lift_ds.cli.train import main as train

    of_all = {"WORLD_SIZE": num_ranks, "LOCAL_WORLD_SIZE": num_ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    of_rank = {"RANK": rank, "LOCAL_RANK": rank}
    os.environ.update({name: str(value) for name, value in (of_all | of_rank).items()})
    counts.forked = time.time()
    atexit.register(counts.write, folder)  # a run ends by `leave`, which calls these
    try:
        train(argv)
    except SystemExit as ended:
        os._exit(ended.code if isinstance(ended.code, int) else 1)
    os._exit(1)


def await_all(children: set[int]) -> int:
    """Exit status: of the first rank that fails, whereupon the others are ended."""
    failed = 0
    while children:
        ended, status = os.wait()
        children.discard(ended)
        if os.waitstatus_to_exitcode(status) and not failed:
            failed = 1
            for child in children:
                os.kill(child, signal.SIGTERM)
    return failed


def main() -> None:
    """Counts while it trains."""
    num_ranks, folder, argv, counts = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:], Counts()
    count_collectives(counts)
    count_files(counts)
    for name in ("datasets", "peft", "lift_ds.cli.train", "lift_ds.training.run"):
        importlib.import_module(name)
    count_store(counts)
    time_parts(counts)
    gc.freeze()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    children = set()
    for rank in range(num_ranks):
        child = os.fork()
        if child == 0:
            become(rank, num_ranks, port, folder, counts, argv)
        children.add(child)
    sys.exit(await_all(children))


if __name__ == "__main__":
    main()
