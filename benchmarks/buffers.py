"""Memory and traffic of the sharded difficulty buffers at LLaDA-8B's vocabulary, and what that is of an 8B step.

    for ranks in 2 4; do torchrun --nproc_per_node $ranks benchmarks/buffers.py --json buffers_$ranks.json; done

V = 126,464, 16 level bins. Every rank observes 16,384 tokens a step for 20 steps, then syncs; then it looks up as
many for the next step, as buffer scoring does. Token frequencies fall like 1/rank. Bytes are counted where they leave
a rank; seconds are medians on this machine. What an 8B step moves and takes is arithmetic, printed with its
assumptions. `--quick` is a smoke test and never quoted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from lift_ds.method.difficulty import NUM_BINS
from lift_ds.ranks.launch import read_launch
from lift_ds.ranks.running import leave
from lift_ds.ranks.shares import Collectives
from lift_ds.training.buffers import DifficultyBuffers
from lift_ds.training.engine import start_distributed

VOCABULARY = 126_464
TOKENS = 16_384
SYNC_EVERY = 20
PARAMETERS = 8.0e9
GPU_FLOPS = 4.0e14  # of one GPU, sustained in bf16
LINK_BYTES = 25.0e9  # a second, of one GPU between nodes


def draw(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, levels and losses of one rank's step."""
    tokens = (VOCABULARY ** torch.rand(TOKENS, generator=generator)).long() - 1
    levels = torch.rand(16, generator=generator).repeat_interleave(TOKENS // 16)
    return tokens, levels, 5 * torch.rand(TOKENS, generator=generator)


def timed(buffers: DifficultyBuffers, action: Callable[[], object]) -> tuple[float, int]:
    """Seconds of a collective action, and the most bytes that it moved off a rank."""
    before = buffers.bytes_moved
    torch.distributed.barrier()
    began = time.perf_counter()
    action()
    torch.distributed.barrier()
    seconds = time.perf_counter() - began
    moved = torch.tensor([float(buffers.bytes_moved - before)])
    return seconds, int(buffers.ranks.all_reduce(moved, "max"))


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="syncs; the first warms up")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--quick", action="store_true", help="a smoke test of two rounds")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    launch = read_launch()
    start_distributed(launch)
    device = torch.device("cuda", launch.local_rank) if torch.cuda.is_available() else torch.device("cpu")
    buffers = DifficultyBuffers(VOCABULARY, Collectives(device), decay=0.999, sync_every=10**9)
    generator = torch.Generator().manual_seed(launch.rank)
    observing, syncs, look_ups = [], [], []
    for round_ in range(2 if arguments.quick else arguments.rounds):
        for step in range(1, SYNC_EVERY + 1):
            drawn = draw(generator)
            began = time.perf_counter()
            buffers.observe([drawn], round_ * SYNC_EVERY + step)
            observing.append(time.perf_counter() - began)
        now = (round_ + 1) * SYNC_EVERY
        syncs.append(timed(buffers, lambda now=now: buffers.sync(now)))  # type: ignore[misc]
        tokens, levels, _ = draw(generator)
        look_ups.append(timed(buffers, lambda asked=(tokens, levels): buffers.look_up(*asked)))  # type: ignore[misc]
    if launch.is_main:
        report(buffers, observing[SYNC_EVERY:], syncs[1:], look_ups[1:], arguments.quick, arguments.json)
    leave(0)


def report(
    buffers: DifficultyBuffers,
    observing: list[float],
    syncs: list[tuple[float, int]],
    look_ups: list[tuple[float, int]],
    is_quick: bool,
    path: Path | None,
) -> None:
    """Prints the table and the arithmetic, and writes the figures."""
    world = buffers.ranks.world_size
    sync_seconds, look_up_seconds = (statistics.median(round_[0] for round_ in rounds) for rounds in (syncs, look_ups))
    sync_bytes, look_up_bytes = (statistics.median(round_[1] for round_ in rounds) for rounds in (syncs, look_ups))
    step_bytes = sync_bytes / SYNC_EVERY + look_up_bytes
    zero_bytes = 3 * 2 * PARAMETERS * (world - 1) / world
    compute_seconds = 8 * PARAMETERS * TOKENS / GPU_FLOPS
    figures: dict[str, float | bool] = {
        "quick": is_quick,
        "ranks": world,
        "mib_per_rank": buffers.table.num_bytes / 2**20,
        "mib_snapshot": VOCABULARY * NUM_BINS * 8 / 2**20,
        "sync_seconds": sync_seconds,
        "sync_mib": sync_bytes / 2**20,
        "look_up_seconds": look_up_seconds,
        "look_up_mib": look_up_bytes / 2**20,
        "observe_seconds": statistics.median(observing),
        "bytes_over_8b_step": step_bytes / zero_bytes,
        "link_time_over_8b_step": step_bytes / LINK_BYTES / compute_seconds,
        "seconds_over_8b_step": (sync_seconds / SYNC_EVERY + look_up_seconds + statistics.median(observing))
        / compute_seconds,
    }
    print(f"{world} ranks, V = {VOCABULARY:,} x {NUM_BINS} bins, {TOKENS:,} tokens a rank and step")
    print(f"  table            {figures['mib_per_rank']:8.2f} MiB a rank ({figures['mib_snapshot']:.1f} MiB in all)")
    print(f"  observe a step   {1000 * figures['observe_seconds']:8.1f} ms")
    print(f"  sync             {1000 * sync_seconds:8.1f} ms  {figures['sync_mib']:.3f} MiB, every {SYNC_EVERY} steps")
    print(f"  look-up a step   {1000 * look_up_seconds:8.1f} ms  {figures['look_up_mib']:.3f} MiB")
    print(f"of a step of {PARAMETERS / 1e9:.0f}B parameters:")
    print(
        f"  bytes            {step_bytes / 1e6:.2f} MB of {zero_bytes / 1e9:.1f} GB (ZeRO-3: two gathers and a "
        f"scatter of 2 bytes a parameter, one micro-batch) = {figures['bytes_over_8b_step']:.5%}"
    )
    print(
        f"  time             compute 8 x parameters x tokens / {GPU_FLOPS:.0e} FLOP/s = {compute_seconds:.2f} s; at "
        f"{LINK_BYTES / 1e9:.0f} GB/s the bytes take {figures['link_time_over_8b_step']:.4%} of it, the seconds "
        f"measured here {figures['seconds_over_8b_step']:.2%}"
    )
    if path:
        path.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
