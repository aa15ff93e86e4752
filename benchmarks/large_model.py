"""A model with LLaDA-8B's widths through the whole path on two ranks: load, train, save, resume, export, verify.

    benchmarks/large_model.sh --json large_model.json

Writes random bf16 weights in LLaDA's public layout (width 4,096, vocabulary 126,464; 5 of the 32 layers: 2.1 B
parameters, 4.3 GB), with the built-in base's tokenizer. Then `launchers/train.py` under ZeRO-3 in bf16: two steps of
LIFT-3 with the published LoRA settings on two short documents each, a checkpoint and the export; a resume for a third
step; and `tools/zero_to_hf.py --verify`. The shapes of all 32 layers are counted on the meta device.

Each stage is a command of its own: seconds, peak resident memory of its largest process, and the largest drop of the
machine's available memory meanwhile. `--quick` takes small widths, and is never quoted.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lift_ds.export.folder import companions
from lift_ds.models.families import read_config
from lift_ds.models.llada import LLaDAConfig, LLaDAModelLM
from lift_ds.models.weights import BUILTIN_BASE, NewWeights, resolve_folder
from lift_ds.storage.safetensors_file import ShardWriter
from lift_ds.storage.stored_tensor import TensorSpec

SHARD_BYTES = 2_000_000_000
PARAMETERS_8B, TENSORS_8B = 8_015_581_184, 291
SMALL_WIDTHS: dict[str, Any] = {"d_model": 64, "n_heads": 4, "mlp_hidden_size": 192, "vocab_size": 2048}
RUN = (
    "data.path=builtin:reasoning data.builtin_rows=100 data.max_length=128 objective.method=lift3 optim.global_batch=2 "
    "lora.rank=128 lora.alpha=256 lora.dropout=0.05 model.gradient_checkpointing=true checkpoint.save_every=1 "
    "eval.rows=2 eval.every=0 eval.solve_items=0"
).split()


def count_8b() -> None:
    """Counts the weights of LLaDA-8B's own config, without memory.

    Raises:
        RuntimeError: They are not what is published.
    """
    with torch.device("meta"):
        parameters = list(LLaDAModelLM(LLaDAConfig()).parameters())
    count = sum(parameter.numel() for parameter in parameters)
    print(f"LLaDA-8B on the meta device: {count:,} parameters in {len(parameters)} tensors")
    if (count, len(parameters)) != (PARAMETERS_8B, TENSORS_8B):
        raise RuntimeError(f"{PARAMETERS_8B:,} in {TENSORS_8B} are published.")


def write_model(folder: Path, num_layers: int, is_quick: bool) -> int:
    """Writes the model folder; returns its number of parameters."""
    base = resolve_folder(BUILTIN_BASE)
    ids = {f"{name}_token_id": getattr(read_config(base), f"{name}_token_id") for name in ("mask", "eos", "pad")}
    config = LLaDAConfig(n_layers=num_layers, **(SMALL_WIDTHS if is_quick else {}), **ids)
    config.save_pretrained(folder)
    for path in companions(base):
        shutil.copyfile(path, folder / path.name)
    specs = {name: TensorSpec(shape, torch.bfloat16) for name, shape in NewWeights(config, 0).shapes().items()}
    generator = torch.Generator().manual_seed(0)
    with ShardWriter(folder, specs, SHARD_BYTES) as writer:
        for name, spec in specs.items():
            drawn = torch.empty(spec.shape, dtype=torch.bfloat16).normal_(0.0, 0.02, generator=generator)
            writer.write(name, drawn)
    return sum(spec.num_elements for spec in specs.values())


def available_gib() -> float:
    """Memory that the machine can still give."""
    return int(Path("/proc/meminfo").read_text().split("MemAvailable:")[1].split()[0]) / 2**20


def measure(name: str, command: Sequence[str | Path]) -> dict[str, float]:
    """Runs a stage; prints a line of the table.

    Raises:
        RuntimeError: It failed.
    """
    before, lowest, done = available_gib(), [available_gib()], threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            lowest[0] = min(lowest[0], available_gib())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    began = time.perf_counter()
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    assert process.stdout is not None
    printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    done.set()
    watcher.join()
    if status:
        raise RuntimeError(f"{name} failed:\n{printed[-4000:]}")
    measured = {"seconds": seconds, "process_gib": usage.ru_maxrss / 2**20, "machine_gib": before - lowest[0]}
    print(f"{name:10}{seconds:>9.0f}{measured['process_gib']:>16.1f}{measured['machine_gib']:>16.1f}", flush=True)
    for line in printed.splitlines():
        if line.startswith("step ") or "reloaded" in line or "resumed" in line or "max_logit_difference" in line:
            print(f"    {line.strip()[:130]}")
    return {f"{name}_{key}": value for key, value in measured.items()}


def run_stages(folder: Path) -> dict[str, float]:
    """Trains, resumes, exports."""
    loaded: dict[str, Any] = json.loads(Path("ds_configs/zero3.json").read_text())
    loaded["bf16"] = {"enabled": True}
    (folder / "bf16.json").write_text(json.dumps(loaded))
    train: list[str | Path] = [
        "deepspeed",
        "--num_gpus",
        "2",
        "--master_port",
        "29571",
        "launchers/train.py",
        "--deepspeed",
        folder / "bf16.json",
    ]
    train += ["--model", folder / "model", *RUN, "--output", folder / "run"]
    export: list[str | Path] = [sys.executable, "tools/zero_to_hf.py", folder / "run", folder / "export", "--verify"]
    print(f"{'stage':10}{'seconds':>9}{'process, GiB':>16}{'machine, GiB':>16}")
    figures = measure("train", [*train, "optim.steps=2"])
    figures |= measure("resume", [*train, "optim.steps=3", "--resume", "auto"])
    return figures | measure("export", export)


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=5, help="of the 32; 0.44 GB and 218 M parameters each")
    parser.add_argument("--folder", type=Path, help="where to write (default: a temporary folder)")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--quick", action="store_true", help="a smoke test with small widths")
    arguments = parser.parse_args()
    count_8b()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        began = time.perf_counter()
        count = write_model(folder / "model", arguments.layers, arguments.quick)
        print(f"{count / 1e9:.2f} B parameters written in {time.perf_counter() - began:.0f} s\n")
        figures = {"quick": arguments.quick, "parameters": float(count)} | run_stages(folder)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
