"""The same numbers, to the last bit: every objective in every setting, before and after a change that must not matter.

    python tests/distributed/same_losses.py --json before.json          at one commit
    python tests/distributed/same_losses.py --against before.json       at another; exits with 1 where a bit differs

Five steps on two ranks of every method x scoring x packing x LoRA, and of every further option once, under ZeRO-2 and
ZeRO-3: loss and gradient norm of each step, a hash of all weights after the last. One start per stage runs them all.
Pairs that are left out are listed with the reason. It works the way `launchers/train.py` does, from dotted overrides.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
BASE = REPOSITORY / "lift_ds" / "assets" / "base"
SMALL_MODEL = {"d_model": 32, "n_layers": 2, "n_heads": 2, "n_kv_heads": 2, "mlp_hidden_size": 64}
STAGES = (2, 3)
NUM_STEPS = 5

METHODS = ("vanilla", "lift2", "lift3", "easy", "hard", "random", "gift")
SCORED = ("lift2", "lift3", "easy", "hard")
SCORINGS = ("exact", "approximate", "buffer", "memory")
PACKINGS = ("none", "best_fit")
LORA_RANKS = (0, 4)
TABLE = ["objective.warm_start_steps=2", "objective.refresh_share=0.5"]
FURTHER = {
    "complementary": ["objective.complementary=true"],
    "complementary vanilla": ["objective.method=vanilla", "objective.complementary=true"],
    "cart": ["objective.token_weight=cart"],
    "mgdm": ["objective.token_weight=mgdm"],
    "papl": ["objective.token_weight=papl", "objective.papl_tau=0.5"],
    "masked tokens": ["objective.normalizer=masked_tokens"],
    "per example": ["objective.normalizer=per_example"],
    "reference": ["objective.normalizer=reference"],
    "random policy": ["objective.policy=random"],
    "paper's rho": ["objective.rho=paper"],
    "iid levels": ["objective.t_sampling=iid"],
    "bf16 scores": ["objective.scoring_precision=bf16"],
    "no time scaling": ["objective.time_scaling=false"],
    "table alone": ["objective.scoring=buffer", "objective.refresh_share=0.0", "objective.warm_start_steps=0"],
    "fillers": ["data.pad_targets=all", "data.pad_to_multiple=48"],
    "checkpointing": ["model.gradient_checkpointing=true"],
    "no table": ["difficulty.enabled=false"],
    "workers": ["data.workers=2"],
}
LEFT_OUT = {
    "vanilla, random, gift x approximate, buffer, memory": "they score nothing, or by entropy: refused by the config",
    "compiled layers": "torch.compile promises no equal bits; `make test-compile` compares within a tolerance",
}


def settings() -> Iterator[tuple[str, list[str]]]:
    """Names and overrides of all that is run."""
    for method in METHODS:
        for scoring in SCORINGS if method in SCORED else ("exact",):
            for packing in PACKINGS:
                for rank in LORA_RANKS:
                    overrides = [f"objective.method={method}", f"data.packing={packing}", f"lora.rank={rank}"]
                    if method in SCORED:
                        overrides.append(f"objective.scoring={scoring}")
                    overrides += TABLE if scoring == "buffer" else []
                    yield f"{method}, {scoring}, {packing}, lora {rank}", overrides
    for name, overrides in FURTHER.items():
        method = [] if any(each.startswith("objective.method") for each in overrides) else ["objective.method=lift3"]
        yield name, [*method, *overrides]


def common(model: Path, output: Path) -> list[str]:
    """Overrides of every setting."""
    return [
        f"model.path={model}", "model.from_scratch=true", f"output={output}", "data.path=builtin:reasoning",
        f"optim.steps={NUM_STEPS}", "optim.global_batch=6", "optim.lr=1e-2", "optim.schedule=constant",
        "data.builtin_rows=400", "data.max_length=160", "difficulty.sync_every=2", "eval.every=0", "eval.rows=2",
        "lora.dropout=0.1",
    ]  # fmt: skip


def write_model(folder: Path) -> Path:
    """The built-in base's tokenizer with a much smaller model."""
    shutil.copytree(BASE, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | SMALL_MODEL))
    return folder


def run_setting(
    overrides: list[str],
    stage: int,
    launch: Any,
    json_changes: Mapping[str, Any] = MappingProxyType({}),
    before: Callable[[Any, Any], None] = lambda engine, run: None,
    after: Callable[[Any, Any, Any], dict[str, Any]] = lambda engine, loader, buffers: {},
) -> dict[str, Any]:
    """Losses, gradient norms and the final weights' hash of one setting.

    Args:
        overrides: Of the run config.
        stage: Of ZeRO, whose JSON is taken.
        launch: This rank.
        json_changes: What differs in the JSON.
        before: Called with the engine and the run config before the first step.
        after: Called after the last one, with the engine, the loader and the difficulty table; what else is found.
    """
    from lift_ds.config.deepspeed import resolve_ds_json
    from lift_ds.config.loading import load_run_config
    from lift_ds.objectives import make_objective
    from lift_ds.training.engine import Engine
    from lift_ds.training.inputs import make_loader, open_weights, prepare
    from lift_ds.training.loop import StopRequest, train_steps
    from lift_ds.training.memory import DifficultyMemory
    from lift_ds.training.run import build_root, make_buffers
    from lift_ds.training.spikes import Spikes

    run, problems = load_run_config(None, overrides)
    assert not problems, problems
    prepared = prepare(run)
    path = REPOSITORY / "ds_configs" / f"zero{stage}.json"
    loaded = json.loads(path.read_text()) | {"train_micro_batch_size_per_gpu": 2} | json_changes
    ds_json, problems = resolve_ds_json(loaded, path, run, launch.world_size, prepared.config, False)
    assert not problems, problems
    objective = make_objective(run.objective)
    engine = Engine(build_root(prepared, open_weights(prepared), ds_json, objective), ds_json, run.optim)
    buffers = make_buffers(prepared, engine, objective)
    memory = buffers if isinstance(buffers, DifficultyMemory) else None
    loader = make_loader(prepared, ds_json["train_micro_batch_size_per_gpu"], engine, 0, memory)
    steps: list[dict[str, Any]] = []

    def after_step(step: int, record: dict[str, Any]) -> None:
        steps.append({name: float(record[name]).hex() for name in ("loss", "grad_norm")})

    before(engine, run)
    try:
        train_steps(engine, run, objective, loader, 0, StopRequest(), buffers, Spikes(None), after_step)
    finally:
        loader.close()
    found = {"steps": steps, "weights": hash_weights(engine.root)} | after(engine, loader, buffers)
    engine.ds.destroy()
    return found


def hash_weights(root: Any) -> str:
    """SHA-256 of all weights, frozen ones included, by name."""
    from deepspeed import zero

    digest = hashlib.sha256()
    for name, parameter in sorted(root.named_parameters()):
        with zero.GatheredParameters([parameter]):
            digest.update(name.encode())
            digest.update(parameter.detach().contiguous().float().numpy().tobytes())
    return digest.hexdigest()


def run_rank(stage: int, output: Path) -> None:
    """All settings of one stage, on this rank."""
    import torch

    from lift_ds.ranks.launch import read_launch
    from lift_ds.ranks.running import leave
    from lift_ds.training.engine import start_distributed

    launch = read_launch()
    start_distributed(launch)
    found = {}
    for number, (name, overrides) in enumerate(settings()):
        began = time.perf_counter()
        folder = output.parent / f"run-{stage}-{number}"
        found[name] = run_setting([*common(output.parent / "model", folder), *overrides], stage, launch)
        gc.collect()
        torch.distributed.barrier()
        if launch.is_main:
            print(
                f"ZeRO-{stage}  {name:44} {found[name]['weights'][:12]} {time.perf_counter() - began:6.1f} s",
                flush=True,
            )
    if launch.is_main:
        output.write_text(json.dumps(found))
    leave(0)


def start(stage: int, output: Path) -> dict[str, Any]:
    """Starts two ranks; what they found."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port)]
    command += [str(Path(__file__).resolve()), "--rank-of-stage", str(stage), str(output)]
    threads = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    paths = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]))
    subprocess.run(command, check=True, cwd=REPOSITORY, env=os.environ | threads | {"PYTHONPATH": paths})
    return json.loads(output.read_text())


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What is not equal, a line each."""
    lines = [f"{name}: not in the other file" for name in now if name not in before]
    lines += [f"{name}: missing now" for name in before if name not in now]
    for name in before.keys() & now.keys():
        if before[name] == now[name]:
            continue
        pairs = zip(before[name]["steps"], now[name]["steps"], strict=True)
        first = next((step for step, (old, new) in enumerate(pairs, 1) if old != new), None)
        where = "only the final weights" if first is None else f"from step {first} on"
        losses = [float.fromhex(each[name]["steps"][(first or 1) - 1]["loss"]) for each in (before, now)]
        lines.append(f"{name}: differs {where}: loss {losses[0]!r} -> {losses[1]!r}")
    return sorted(lines)


def main() -> None:
    """Runs everything, writes and compares it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for the numbers")
    parser.add_argument("--against", type=Path, help="numbers to compare with, of an earlier --json")
    parser.add_argument("--rank-of-stage", nargs=2, metavar=("STAGE", "FILE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rank_of_stage:
        run_rank(int(arguments.rank_of_stage[0]), Path(arguments.rank_of_stage[1]))
        return
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder) / "model")
        for stage in STAGES:
            results = start(stage, Path(folder) / f"stage-{stage}.json")
            found |= {f"ZeRO-{stage}, {name}": result for name, result in results.items()}
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    print("left out: " + "; ".join(f"{name} ({reason})" for name, reason in LEFT_OUT.items()))
    if arguments.against:
        lines = differences(json.loads(arguments.against.read_text()), found)
        print("\n".join(lines) or f"all {len(found)} settings are equal to the last bit")
        sys.exit(1 if lines else 0)


if __name__ == "__main__":
    main()
