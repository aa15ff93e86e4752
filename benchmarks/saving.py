"""What checkpoints cost training: written at once, and behind it; and the hashes of a resume.

    python benchmarks/saving.py --json saving.json

Full fine-tuning of a model of a quarter of a billion parameters under ZeRO-3 on two ranks: a run without checkpoints,
one that writes them at once, one that writes them behind the training, in turn. Between two steps of a run lies what
training stands still for; what it takes in all is the time until the last step, or until the last checkpoint is there
where that is later, over the run without.

    checkpoint_stall_ratio      time between two steps, behind over at once (medians)
    checkpoint_first_ratio      the same of the first checkpoint, which takes the memory for the copy
    checkpoint_slowdown_ratio   all extra time, behind over at once
    peak_*_gib                  most memory of a rank
    resume_hash_ratio           hashing the checkpoint on two ranks over one (warm page cache)
    resume_seconds              from the launch of a run that goes on to its first step's end
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lift_ds.models.families import read_config
from lift_ds.models.weights import NewWeights
from lift_ds.ranks.launch import read_launch
from lift_ds.ranks.running import leave
from lift_ds.ranks.shares import Collectives
from lift_ds.storage.manifest import find_checkpoint
from lift_ds.storage.run_folder import METRICS_FILE, read_metrics
from lift_ds.training.engine import start_distributed
from lift_ds.training.resumed import find_together

REPOSITORY = Path(__file__).resolve().parents[1]
BASE = REPOSITORY / "lift_ds" / "assets" / "base"
SIZES = {"d_model": 1024, "n_heads": 16, "n_kv_heads": 16, "mlp_hidden_size": 2816, "n_layers": 20}
QUICK_SIZES = {"d_model": 64, "n_heads": 2, "n_kv_heads": 2, "mlp_hidden_size": 128, "n_layers": 2}
ARMS = ("none", "at_once", "behind")


def make_model(folder: Path, sizes: dict[str, int]) -> float:
    """A config with the built-in base's tokenizer; returns the number of parameters in millions."""
    folder.mkdir()
    for path in BASE.iterdir():
        if path.suffix != ".safetensors" and path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((BASE / "config.json").read_text()) | sizes
    (folder / "config.json").write_text(json.dumps(config))
    return sum(shape.numel() for shape in NewWeights(read_config(folder), 0).shapes().values()) / 1e6


def train(model: Path, output: Path, *more: str) -> float:
    """A run on two ranks; returns when it was launched."""
    began = time.time()
    command = ["deepspeed", "--num_gpus", "2", "launchers/train.py", "--deepspeed", "ds_configs/zero3.json"]
    command += [f"--model={model}", f"--output={output}", "model.from_scratch=true", "optim.global_batch=4"]
    command += ["data.builtin_rows=400", "eval.every=0", "eval.rows=0", "eval.solve_items=0", "eval.watch_every=0"]
    done = subprocess.run([*command, *more], cwd=REPOSITORY, text=True, capture_output=True)
    if done.returncode:
        sys.exit(done.stdout[-3000:] + done.stderr[-3000:])
    return began


def stalls(output: Path, num_steps: int, save_every: int) -> list[float]:
    """Seconds between a step that is followed by a checkpoint and the next one."""
    steps = {record["step"]: record for record in read_metrics(output / METRICS_FILE, "step")}
    return [
        steps[step + 1]["time"] - steps[step + 1]["seconds"] - steps[step]["time"]
        for step in range(save_every, num_steps, save_every)
    ]


def whole_seconds(output: Path, num_steps: int) -> float:
    """From the end of the first step to that of the last one, or to the last checkpoint before it."""
    steps = {record["step"]: record["time"] for record in read_metrics(output / METRICS_FILE, "step")}
    saved = [each["time"] for each in read_metrics(output / METRICS_FILE, "checkpoint") if each["step"] < num_steps]
    return float(max([steps[num_steps], *saved]) - steps[1])


def hash_on_ranks(folder: Path, output: Path, rounds: int) -> None:
    """Times both ways of finding the newest whole checkpoint; every rank runs this."""
    launch = read_launch()
    start_distributed(launch)
    ranks = Collectives(torch.device("cpu"))
    seconds: dict[str, list[float]] = {"alone": [], "together": []}

    def timed(name: str, action: Callable[[], Any]) -> None:
        ranks.barrier()
        began = time.monotonic()
        action()
        ranks.barrier()
        seconds[name].append(time.monotonic() - began)

    for _ in range(rounds + 1):  # the first one reads the files into the page cache
        timed("alone", lambda: find_checkpoint(folder, "auto") if ranks.rank == 0 else None)
        timed("together", lambda: find_together(folder, "auto", ranks))
    if launch.is_main:
        output.write_text(json.dumps({name: statistics.median(each[1:]) for name, each in seconds.items()}))
    leave(0)


def measure(arguments: argparse.Namespace, place: Path) -> dict[str, Any]:
    """Runs everything; returns the figures."""
    model, num_steps, save_every = place / "model", arguments.steps, arguments.save_every
    figures: dict[str, Any] = {"million_parameters": make_model(model, QUICK_SIZES if arguments.quick else SIZES)}
    gaps: dict[str, list[list[float]]] = {name: [] for name in ARMS}
    whole: dict[str, list[float]] = {name: [] for name in ARMS}
    peaks: dict[str, float] = dict.fromkeys(ARMS, 0.0)
    for number in range(arguments.rounds):
        for name in ARMS:
            output = place / f"{name}-{number}"
            saves = [f"checkpoint.save_every={0 if name == 'none' else save_every}"]
            saves.append(f"checkpoint.async_save={name == 'behind'}")
            train(model, output, f"optim.steps={num_steps}", *saves)
            gaps[name].append(stalls(output, num_steps, save_every))
            whole[name].append(whole_seconds(output, num_steps))
            steps = read_metrics(output / METRICS_FILE, "step")
            peaks[name] = max(peaks[name], *(record["peak_memory_gib"] for record in steps))
            if (name, number) != ("behind", arguments.rounds - 1):
                subprocess.run(["rm", "-r", str(output)], check=True)
    later = {name: statistics.median(gap for gaps_of_run in gaps[name] for gap in gaps_of_run[1:]) for name in ARMS}
    first = {name: statistics.median(each[0] for each in gaps[name]) for name in ARMS}
    extra = {name: statistics.median(whole[name]) - statistics.median(whole["none"]) for name in ("at_once", "behind")}
    figures |= {
        "checkpoint_stall_ratio": later["behind"] / later["at_once"],
        "checkpoint_first_ratio": first["behind"] / first["at_once"],
        "checkpoint_slowdown_ratio": extra["behind"] / extra["at_once"],
        **{f"stall_{name}_seconds": seconds for name, seconds in later.items()},
        **{f"peak_{name}_gib": peak for name, peak in peaks.items()},
    }
    figures |= measure_resume(model, place / f"behind-{arguments.rounds - 1}", num_steps, arguments.rounds)
    return figures


def measure_resume(model: Path, output: Path, num_steps: int, rounds: int) -> dict[str, float]:
    """Hashing on one rank and on two, and a whole start."""
    hashed = output.parent / "hashed.json"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29655", __file__]
    command += ["--hash", str(output / "checkpoints"), "--json", str(hashed), "--rounds", str(rounds)]
    subprocess.run(command, cwd=REPOSITORY, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    seconds = json.loads(hashed.read_text())
    began = train(model, output, "--resume", "auto", f"optim.steps={num_steps + 1}", "checkpoint.save_every=0")
    (step,) = (each for each in read_metrics(output / METRICS_FILE, "step") if each["step"] == num_steps + 1)
    return {
        "resume_hash_ratio": seconds["together"] / seconds["alone"],
        "resume_hash_seconds": seconds["together"],
        "resume_seconds": step["time"] - began,
    }


def main() -> None:
    """Measures, prints the table and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=9, help="of each run (default: %(default)s)")
    parser.add_argument("--save-every", type=int, default=2, help="steps between checkpoints (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each kind (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--quick", action="store_true", help="a smoke test: a small model, one round")
    parser.add_argument("--hash", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.hash:
        hash_on_ranks(arguments.hash, arguments.json, arguments.rounds)
        return
    if arguments.quick:
        arguments.rounds, arguments.steps = 1, 5
    with tempfile.TemporaryDirectory() as place:
        figures = measure(arguments, Path(place)) | {"quick": arguments.quick}
    print("\n| | behind over at once |\n| --- | --- |")
    print(f"| time between two steps | {figures['checkpoint_stall_ratio']:.3f} |")
    print(f"| the same, first checkpoint | {figures['checkpoint_first_ratio']:.3f} |")
    print(f"| all extra time | {figures['checkpoint_slowdown_ratio']:.2f} |")
    peaks = ", ".join(f"{name} {figures[f'peak_{name}_gib']:.2f}" for name in ARMS)
    print(f"\nGiB of a rank: {peaks}; between two steps, seconds: ", end="")
    print(", ".join(f"{name} {figures[f'stall_{name}_seconds']:.2f}" for name in ARMS))
    print(f"hashing on two ranks over one {figures['resume_hash_ratio']:.2f} ({figures['resume_hash_seconds']:.2f} s)")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
