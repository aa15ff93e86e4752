"""Conversion of ZeRO-3 checkpoints to safetensors: `tools/zero_to_hf.py` against DeepSpeed's `zero_to_fp32`.

    python benchmarks/conversion.py --large --json conversion.json

The checkpoints are written here in DeepSpeed's layout (float32 masters and two moments, LLaDA's names and shapes,
random weights) for 2 and 8 ranks: 220 M parameters, and 1 B with `--large`, ours alone. Both tools write safetensors in
files of 200 MB; DeepSpeed's default flags (one pickle) are measured too. Every run is a process of its own,
interleaved, timed from its start to its end; before it all earlier writes are on disk, and the checkpoint is either in
the page cache (warm) or dropped from it (cold, posix_fadvise). `peak` is VmHWM, resident memory with mapped file pages;
`private` is the largest RssAnon, sampled every 20 ms, which leaves them out. Ratios are ours over theirs; the headlines
are the worst of the four settings. `--quick` is a smoke test and never quoted.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import OrderedDict
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum

TOOL = Path(__file__).resolve().parents[1] / "tools" / "zero_to_hf.py"
WORLDS = (2, 8)
CACHES = ("warm", "cold")
SHARD_SIZE = "200MB"
WIDTH_LAYERS = {"tiny": (64, 2), "220m": (1024, 12), "1b": (2048, 17)}
VOCABULARY = {"tiny": 512, "220m": 27_648, "1b": 27_648}
STEP = 100
SAMPLE_SECONDS = 0.02
TOOLS = ("ours", "theirs", "default")
RATIOS = (
    ("peak_resident_ratio", "peak", "theirs"),
    ("private_ratio", "private", "theirs"),
    ("wall_ratio", "seconds", "theirs"),
    ("wall_ratio_default", "seconds", "default"),
)


def model_shapes(size: str) -> list[dict[str, torch.Size]]:
    """Names and shapes of a model, matrices and vectors apart, as the optimizer groups them."""
    (width, num_layers), vocabulary = WIDTH_LAYERS[size], VOCABULARY[size]
    matrices = {"transformer.wte.weight": torch.Size([vocabulary, width])}
    vectors: dict[str, torch.Size] = {}
    for layer in range(num_layers):
        block = f"transformer.blocks.{layer}"
        for name in ("q_proj", "k_proj", "v_proj", "attn_out"):
            matrices[f"{block}.{name}.weight"] = torch.Size([width, width])
        for name in ("ff_proj", "up_proj"):
            matrices[f"{block}.{name}.weight"] = torch.Size([3 * width, width])
        matrices[f"{block}.ff_out.weight"] = torch.Size([width, 3 * width])
        vectors |= {f"{block}.{name}.weight": torch.Size([width]) for name in ("attn_norm", "ff_norm")}
    matrices["transformer.ff_out.weight"] = torch.Size([vocabulary, width])
    return [matrices, vectors]


def write_checkpoint(folder: Path, size: str, world: int) -> None:
    """Writes shards as DeepSpeed does, one rank after the other."""
    groups = model_shapes(size)
    shards = folder / f"global_step{STEP}"
    shards.mkdir(parents=True)
    (folder / "latest").write_text(shards.name)
    lengths = [sum(-(-shape.numel() // world) for shape in group.values()) for group in groups]
    for rank in range(world):
        masters = [torch.randn(length) for length in lengths]
        states = {
            index: {"step": torch.tensor(float(STEP)), "exp_avg": master * 0.1, "exp_avg_sq": master**2}
            for index, master in enumerate(masters)
        }
        optimizer = {
            "zero_stage": ZeroStageEnum.weights,
            "loss_scaler": LossScaler(1.0),
            "partition_count": world,
            "optimizer_state_dict": {"state": states, "param_groups": [{"params": [index]} for index in states]},
            "fp32_flat_groups": masters,
        }
        path = shards / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        torch.save({"optimizer_state_dict": optimizer, "ds_config": {}, "ds_version": "0.19.8"}, path)
        model = {
            "module": OrderedDict((name, torch.empty(0)) for group in groups for name in group),
            "buffer_names": [],
            "param_shapes": [OrderedDict(group) for group in groups],
            "shared_params": {},
            "global_steps": STEP,
            "dp_world_size": world,
            "ds_version": "0.19.8",
        }
        torch.save(model, shards / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")


def command_of(tool: str, checkpoint: Path, output: Path) -> list[str]:
    """The command line of a tool."""
    if tool == "ours":
        flags = ["--weights-only", "--dtype", "float32", "--max-shard-size", SHARD_SIZE]
        return [sys.executable, str(TOOL), str(checkpoint), str(output), *flags]
    flags = ["--safe_serialization", "--max_shard_size", SHARD_SIZE] if tool == "theirs" else []
    return [sys.executable, "-m", "deepspeed.utils.zero_to_fp32", str(checkpoint), str(output), *flags]


@dataclass(frozen=True)
class Run:
    """A conversion's wall time in seconds, and its largest resident and private memory in MiB."""

    seconds: float
    peak: float
    private: float


def measure(tool: str, checkpoint: Path, cache: str) -> Run:
    """Runs a tool once, in a process of its own."""
    output = checkpoint.parent / "output"
    shutil.rmtree(output, ignore_errors=True)
    os.sync()
    for path in checkpoint.rglob("*.pt"):
        set_cache(path, cache)
    began = time.perf_counter()
    environment = os.environ | {"DS_ACCELERATOR": "cpu"}
    process = subprocess.Popen(
        command_of(tool, checkpoint, output), env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    peak = private = 0.0
    while process.poll() is None:
        status = read_status(process.pid)
        peak, private = max(peak, status.get("VmHWM", 0)), max(private, status.get("RssAnon", 0))
        time.sleep(SAMPLE_SECONDS)
    seconds = time.perf_counter() - began
    printed = process.communicate()[0]
    if process.returncode:
        raise RuntimeError(f"{tool} failed: {printed.decode()[-2000:]}")
    return Run(seconds, peak, private)


def read_status(pid: int) -> dict[str, float]:
    """Memory of a process in MiB, by field; empty once it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    return {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines if line.startswith(("VmHWM", "RssAnon"))}


def set_cache(path: Path, cache: str) -> None:
    """Reads a file into the page cache, or drops it from there."""
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while cache == "warm" and file.read(16 << 20):
            pass


def measure_size(size: str, folder: Path, rounds: int, tools: tuple[str, ...] = TOOLS) -> dict[str, float]:
    """All settings of a model size: prints a line each, returns figures; ratios where all tools are measured."""
    figures: dict[str, float] = {}
    for world, cache in product(WORLDS, CACHES):
        checkpoint = folder / f"{size}-{world}"
        if not checkpoint.exists():
            write_checkpoint(checkpoint, size, world)
        runs: dict[str, list[Run]] = {tool: [] for tool in tools}
        for _ in range(rounds):
            for tool, measured in runs.items():
                measured.append(measure(tool, checkpoint, cache))
        setting = f"{size}_{world}_ranks_{cache}"
        line = f"{size:>6}{world:>6}{cache:>6}"
        for tool, measured in runs.items():
            for unit in ("seconds", "peak", "private"):
                value = statistics.median(getattr(run, unit) for run in measured)
                figures[f"{tool}_{unit}_{setting}"] = value
                line += f"{value:>9.1f}" if unit == "seconds" else f"{value:>9.0f}"
        for name, unit, tool in RATIOS if tools == TOOLS else ():
            figures[f"{name}_{setting}"] = figures[f"ours_{unit}_{setting}"] / figures[f"{tool}_{unit}_{setting}"]
            line += f"{figures[f'{name}_{setting}']:>9.2f}"
        print(line, flush=True)
    return figures


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="interleaved runs of each tool in each setting")
    parser.add_argument("--large", action="store_true", help="also ours alone at 1 B parameters (26 GB on disk)")
    parser.add_argument("--folder", type=Path, help="where to write the checkpoints (default: a temporary folder)")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--quick", action="store_true", help="a smoke test with a tiny model")
    arguments = parser.parse_args()
    sizes = ["tiny"] if arguments.quick else ["220m", *(["1b"] if arguments.large else [])]
    columns = "".join(f"{tool + ' ' + unit:>9}" for tool in ("ours", "safe", "pickle") for unit in ("s", "MiB", "prv"))
    print(
        f"{'':>6}{'ranks':>6}{'cache':>6}{columns}" + "".join(f"{n:>9}" for n in ("peak", "private", "wall", "to def"))
    )
    figures: dict[str, float] = {"quick": arguments.quick}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for size in sizes:
            rounds = 1 if arguments.quick or size == "1b" else arguments.rounds
            figures |= measure_size(size, Path(folder), rounds, ("ours",) if size == "1b" else TOOLS)
            for path in Path(folder).glob(f"{size}-*"):
                shutil.rmtree(path)
    for name, *_ in RATIOS:
        figures[name] = max(value for key, value in figures.items() if key.startswith(f"{name}_{sizes[0]}"))
    if arguments.large and not arguments.quick:
        peaks = {size: max(value for key, value in figures.items() if f"ours_peak_{size}" in key) for size in sizes}
        figures["peak_resident_growth"] = peaks["1b"] / peaks["220m"]
        print(f"peak resident memory, 1 B over 220 M parameters: {figures['peak_resident_growth']:.2f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
