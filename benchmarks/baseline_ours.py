"""This package's side of `benchmarks/baseline.py`: whole steps through its engine on the rows of a cell."""

from __future__ import annotations

import gc
import json
import sys
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from baseline_cell import Cell, Watch
from whole_steps import Noised, WholeSteps

from lift_ds.config.run import RunConfig
from lift_ds.data.batch import Document
from lift_ds.data.order.dealing import BatchRule
from lift_ds.models.attention import attention_kernels
from lift_ds.models.families import read_config
from lift_ds.objectives import objective_settings
from lift_ds.planning.flops import Arithmetic
from lift_ds.ranks.launch import Launch, read_launch
from lift_ds.ranks.running import leave
from lift_ds.storage.safetensors_folder import SafetensorsFolder
from lift_ds.training.engine import start_distributed


def deal(rule: BatchRule, documents: list[Document], launch: Launch) -> list[list[Document]]:
    """This rank's micro-batches of one step, as a run cuts and deals them."""
    places = rule.cut([rule.size([len(document.ids)]) for document in documents], launch.world_size)[launch.rank]
    assert all(places), "a rank would have nothing to do"
    return [[documents[place] for place in part] for part in places]


def cut_micro_batches(parts: list[list[Document]], noised: list[Noised]) -> list[list[Noised]]:
    """Documents with their noise, one after the other, as those micro-batches."""
    rest = iter(noised)
    return [list(islice(rest, len(part))) for part in parts]


def run_cell(cell: Cell) -> None:
    """Trains on one rank and writes what it took."""
    launch = read_launch()
    start_distributed(launch)
    rows_a_step = cell.micro_batch * cell.accumulation * launch.world_size
    documents = torch.load(f"{cell.rows}.documents", weights_only=False)
    folder = Path(cell.model)
    config = read_config(folder)
    pair_cost, max_tokens = Arithmetic.of(config).pair_cost, RunConfig().data.micro_batch_tokens
    rule = BatchRule(max_tokens=max_tokens, is_packed=cell.is_packed, pair_cost=pair_cost)
    watch, losses = Watch(cell, launch.rank), []
    steps = WholeSteps(
        config,
        SafetensorsFolder(folder),
        Path(cell.engine_json),
        objective_settings(method=cell.method, t_sampling="iid"),
        rows_a_step,
        launch.world_size,
        is_packed=cell.is_packed,
        has_bf16=False,
    )
    with attention_kernels(steps.engine.root.kernel):
        gc.freeze()  # as a run does
        for number in range(cell.num_steps):
            of_step = documents[number * rows_a_step : (number + 1) * rows_a_step]
            parts = deal(rule, of_step, launch)
            own = [document for part in parts for document in part]
            losses.append(steps.step(own, number, cut=partial(cut_micro_batches, parts)))
            watch.step_done()
    watch.write(losses)
    steps.engine.barrier()
    leave(0)


if __name__ == "__main__":
    run_cell(Cell(**json.loads(sys.argv[1])))
