"""This package's side of `benchmarks/baseline.py`: whole steps through its engine on the rows of a cell."""

from __future__ import annotations

import gc
import json
import sys
from functools import partial
from pathlib import Path

import torch
from baseline_cell import Cell, Watch
from whole_steps import Noised, WholeSteps

from lift_ds.models.attention import attention_kernels
from lift_ds.models.families import read_config
from lift_ds.objectives import objective_settings
from lift_ds.ranks.launch import read_launch
from lift_ds.ranks.running import leave
from lift_ds.storage.safetensors_folder import SafetensorsFolder
from lift_ds.training.engine import start_distributed


def cut_micro_batches(cell: Cell, noised: list[Noised]) -> list[list[Noised]]:
    """How a rank's rows of one step become its forwards: by their number, longest first where they are padded."""
    if not cell.is_packed:
        noised = sorted(noised, key=lambda pair: -len(pair[0].ids))
    return [noised[start : start + cell.micro_batch] for start in range(0, len(noised), cell.micro_batch)]


def run_cell(cell: Cell) -> None:
    """Trains on one rank and writes what it took."""
    launch = read_launch()
    start_distributed(launch)
    rows_a_step = cell.micro_batch * cell.accumulation * launch.world_size
    documents = torch.load(f"{cell.rows}.documents", weights_only=False)
    watch, losses, folder = Watch(cell, launch.rank), [], Path(cell.model)
    steps = WholeSteps(
        read_config(folder),
        SafetensorsFolder(folder),
        Path(cell.engine_json),
        objective_settings(method=cell.method, t_sampling="iid"),
        rows_a_step,
        launch.world_size,
        is_packed=cell.is_packed,
        has_bf16=False,
        micro_batch=cell.micro_batch,
    )
    with attention_kernels(steps.engine.root.kernel):
        gc.freeze()  # as a run does
        for number in range(cell.num_steps):
            of_step = documents[number * rows_a_step : (number + 1) * rows_a_step]
            own = sorted(of_step, key=lambda document: document.sample_id)[launch.rank :: launch.world_size]
            losses.append(steps.step(own, number, cut=partial(cut_micro_batches, cell)))
            watch.step_done()
    watch.write(losses)
    steps.engine.barrier()
    leave(0)


if __name__ == "__main__":
    run_cell(Cell(**json.loads(sys.argv[1])))
