"""What the ranks of `test_warm_up` do: short runs without and with a warm-up; `warm_up.py OUTPUT FOLDER SETTINGS`.

SETTINGS is a JSON list of [name, ZeRO stage, changes of DeepSpeed's JSON, overrides]. Rank 0 writes, by name, what a
run leaves without and with the warm-up.
"""

from __future__ import annotations

import gc
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator

from lift_ds.ranks.launch import read_launch
from lift_ds.ranks.running import leave
from lift_ds.training.engine import Engine, start_distributed
from lift_ds.training.warm_up import worst_case
from tests.distributed.same_losses import common, run_setting

COUNTS = ("micro_steps", "global_steps", "skipped_steps", "global_samples")
LENGTHS = [160, 160]  # of documents longer than any that comes


def hash_state(values: Any) -> str:
    """SHA-256 of nested tensors and numbers."""
    digest = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            digest.update(value.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(value, dict):
            for key in value:
                add(value[key])
        else:
            digest.update(repr(value).encode())

    add(values)
    return digest.hexdigest()


def run_twice(stage: int, json_changes: dict, overrides: list[str], launch: Any) -> list[dict]:
    """What a run leaves without and with the warm-up: as the run writes it, and as DeepSpeed and torch hold it."""
    invalidations: list[int] = []
    invalidate = PartitionedParameterCoordinator._invalidate_trace

    def counted(self: PartitionedParameterCoordinator) -> None:
        invalidations.append(1)
        invalidate(self)

    def what_is_left(engine: Engine, loader: Any, buffers: Any) -> dict:
        return {
            "counts": {name: getattr(engine.ds, name) for name in COUNTS},
            "optimizer": hash_state(list(engine.ds.optimizer.optimizer.state.values())),
            "position": loader.state,
            "generator": hash_state(torch.get_rng_state()),
            "table": hash_state(getattr(buffers.table, "table", buffers.table).state()),
            "invalidations": len(invalidations),
        }

    def warm_up(engine: Engine, run: Any) -> None:
        real = engine.forward_backward  # here the losses have weight: that their gradients are let go of must do
        engine.forward_backward = lambda batch, scale, *more: real(batch, scale + 1.0, *more)
        engine.warm_up(worst_case(LENGTHS, engine.root.objective), adds_up=engine.loss_factor > engine.world_size)
        engine.forward_backward = real

    found = []
    PartitionedParameterCoordinator._invalidate_trace = counted
    for before in (lambda engine, run: None, warm_up):
        invalidations.clear()
        torch.manual_seed(3)
        found.append(run_setting(overrides, stage, launch, json_changes, before, what_is_left))
        gc.collect()
    PartitionedParameterCoordinator._invalidate_trace = invalidate
    return found


def main() -> None:
    output, folder, settings = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    launch = read_launch()
    start_distributed(launch)
    results = {}
    for name, stage, json_changes, overrides in settings:
        found = run_twice(stage, json_changes, [*common(folder / "model", folder / "run"), *overrides], launch)
        everyone: list[Any] = [None] * launch.world_size
        torch.distributed.all_gather_object(everyone, found)
        results[name] = [[of_rank[place] for of_rank in everyone] for place in (0, 1)]
    if launch.is_main:
        Path(output).write_text(json.dumps(results))
    leave(0)


if __name__ == "__main__":
    main()
