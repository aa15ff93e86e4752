"""What all ranks compare before minutes are lost: versions, code, model files, clocks, disk, and how fast they talk."""

from __future__ import annotations

import hashlib
import platform
import shutil
import socket
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path

import torch

from lift_ds.config.training import CheckpointConfig
from lift_ds.ranks.launch import Launch
from lift_ds.ranks.shares import Collectives

PACKAGES = ("torch", "deepspeed", "transformers", "tokenizers", "numpy", "safetensors")
SAMPLES, SAMPLE_BYTES = 8, 1 << 16  # of a file with weights
CLOCKS_APART = 300.0  # seconds: more is a fault of a machine's clock
MESSAGE_BYTES = 16 << 20
ROUNDS = 5
GIB = 1 << 30
WHOLE_FILES = (".json", ".jinja", ".model", ".txt")


@dataclass(frozen=True)
class Facts:
    """What a rank says of itself.

    Args:
        rank: Its number.
        host: Its machine.
        versions: Of Python and of packages, by name.
        code: Digest of this package's source files.
        model: Digest of each file of the model, by name; of the machine's first rank, `None` of others.
        clock: `time.time` at about the same moment.
    """

    rank: int
    host: str
    versions: dict[str, str]
    code: str
    model: dict[str, str] | None
    clock: float


@cache
def code_digest() -> str:
    """Of every Python file of this package, by name and content."""
    root, digest = Path(__file__).resolve().parents[1], hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def model_digests(folder: Path) -> dict[str, str]:
    """Of each file that runs read in a model's folder: of its bytes where they are few, else of size and samples."""
    kinds = (*WHOLE_FILES, ".safetensors")
    return {path.name: _digest(path) for path in sorted(folder.iterdir()) if path.suffix in kinds}


def _digest(path: Path) -> str:
    digest, size = hashlib.sha256(), path.stat().st_size
    digest.update(str(size).encode())
    with open(path, "rb") as file:
        if path.suffix in WHOLE_FILES or size <= SAMPLES * SAMPLE_BYTES:
            digest.update(file.read())
        else:
            for number in range(SAMPLES):
                file.seek(number * (size - SAMPLE_BYTES) // (SAMPLES - 1))
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()[:12]


def facts_of(launch: Launch, model: Path) -> Facts:
    """This rank's, but for the clock, which is read when all are there."""
    versions = {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}
    digests = model_digests(model) if launch.local_rank == 0 else None
    return Facts(launch.rank, socket.gethostname(), versions, code_digest(), digests, 0.0)


def find_differences(everyones: list[Facts]) -> list[str]:
    """Where ranks differ from rank 0, a line for each kind of difference and machine."""
    first = everyones[0]
    problems: dict[str, None] = {}  # in order, each once
    for facts in everyones:
        where = f"on {facts.host}"
        sides = ((name, first.versions[name], facts.versions.get(name)) for name in first.versions)
        differing = [f"{name} {theirs}, not {ours}" for name, ours, theirs in sides if ours != theirs]
        if differing:
            problems[f"versions {where}: {'; '.join(differing)}: install the same (constraints.txt) everywhere"] = None
        if facts.code != first.code:
            problems[f"another lift_ds {where}: {facts.code}, not {first.code}: check out the same commit"] = None
        names = sorted(
            name
            for name in {*(facts.model or {}), *(first.model or {})}
            if facts.model is not None and (first.model or {}).get(name) != facts.model.get(name)
        )
        if names:
            problems[f"another model {where}: {', '.join(names[:4])} differ from rank 0's: copy its folder"] = None
        if abs(facts.clock - first.clock) > CLOCKS_APART:
            apart = f"{facts.clock - first.clock:+.0f} s from rank 0's"
            problems[f"the clock {where} is {apart}: set it (chrony, ntpd)"] = None
    return list(problems)


def num_checkpoints(config: CheckpointConfig, steps: int, folder: Path) -> int:
    """How many more checkpoints there must be room for: the kept ones, the best, and the one that is being written."""
    written = -(-steps // config.save_every) if config.save_every else 1
    there = len(list(folder.glob("step-*")))
    best = config.best_by != "none" and written > config.keep
    return max(1, min(config.keep, written) + (written > config.keep) + best - there)


def measure_links(ranks: Collectives) -> tuple[float, float]:
    """Seconds of an all-reduce of one number, medians, and bytes a second of one of 16 MiB, the best; all call it."""

    def seconds(num_elements: int) -> Iterator[float]:
        values = torch.zeros(num_elements, device=ranks.device)
        for _ in range(ROUNDS):
            began = time.perf_counter()
            torch.distributed.all_reduce(values)
            float(values[0])  # waits for the device
            yield time.perf_counter() - began

    return statistics.median(seconds(1)), MESSAGE_BYTES / min(seconds(MESSAGE_BYTES // 4))


def compare_ranks(
    launch: Launch,
    ranks: Collectives,
    model: Path,
    output: Path,
    checkpoint_bytes: int,
    count_needed: Callable[[], int],
) -> str:
    """Compares all ranks and measures what they need; a table of it. All of them call it.

    Args:
        launch: This rank.
        ranks: All of them.
        model: Folder of the model, on this machine.
        output: The run's folder.
        checkpoint_bytes: What a checkpoint takes.
        count_needed: Counts how many there must be room for; rank 0 calls it.

    Raises:
        ValueError: Something differs, or the disk is too small; on every rank, with all that was found.
    """
    mine = facts_of(launch, model)
    ranks.barrier()
    clocks = ranks.gather_objects(time.time())
    gathered = ranks.gather_objects(mine)
    everyones = [replace(facts, clock=clock) for facts, clock in zip(gathered, clocks, strict=True)]
    problems = find_differences(everyones)
    free, num_needed = ranks.on_main(lambda: (shutil.disk_usage(output).free, count_needed()))
    needed = num_needed * checkpoint_bytes
    what = "a checkpoint takes" if num_needed == 1 else f"{num_needed} checkpoints take"
    disk = f"{free / GIB:.1f} GiB free in {output}, {what} {needed / GIB:.1f}"
    if free < needed:
        problems.append(f"the disk: {disk}: make room, lower checkpoint.keep, or set another output")
    if problems:
        raise ValueError("before training:\n" + "\n".join(f"  - {problem}" for problem in problems))
    latency, speed = measure_links(ranks)
    first, hosts = everyones[0], {facts.host for facts in everyones}
    shown = ", ".join(f"{name} {first.versions[name]}" for name in ("torch", "deepspeed", "transformers"))
    apart = max(clocks) - min(clocks)
    machines = f"{len(hosts)} machine{'s' if len(hosts) > 1 else ''}"
    rows = {
        f"{len(everyones)} ranks on {machines}": f"{shown}, lift_ds {first.code}",
        "model": f"{len(first.model or {})} files, the same everywhere",
        "clocks": f"within {apart:.1f} s",
        "disk": disk,
        "all-reduce": f"{1000 * latency:.2f} ms, {MESSAGE_BYTES >> 20} MiB at {speed / 1e9:.2f} GB/s",
    }
    return "\n".join(["before training", *(f"  {name:24}{value}" for name, value in rows.items())])
