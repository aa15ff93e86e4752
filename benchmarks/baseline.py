"""This trainer against what people run today: time, memory and start-up, on the same rows, steps and masks.

    python benchmarks/baseline.py --json baseline.json

TODO
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from plain_trainer import Cell, begin_peak, memory_bytes, write_measured
from safetensors.torch import save_file
from transformers.trainer_pt_utils import get_length_grouped_indices
from whole_steps import SEED, Noised, WholeSteps, draw_documents

from lift_ds.data.batch import Document
from lift_ds.models.attention import attention_kernels
from lift_ds.models.families import read_config
from lift_ds.models.llada import LLaDAConfig
from lift_ds.models.weights import NewWeights
from lift_ds.objectives import objective_settings
from lift_ds.ranks.launch import read_launch
from lift_ds.ranks.running import leave
from lift_ds.storage.safetensors_folder import SafetensorsFolder
from lift_ds.training.draws import make_noise_rule
from lift_ds.training.engine import start_distributed

BENCHMARKS = Path(__file__).resolve().parent
ENGINE_JSON = BENCHMARKS.parent / "ds_configs" / "zero3.json"
METHODS = ("vanilla", "lift3")
WORLD_SIZES = (1, 2)
MAX_LENGTH = 1024
PROMPT_SHARE = 0.25
WARM_UP_LENGTH = 24
SHORT_MEAN, SHORT_CV = 150.0, 0.55
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONWARNINGS": "ignore", "HF_HUB_OFFLINE": "1"}


@dataclass(frozen=True)
class Mix:
    """Rows of one kind of length.

    Args:
        lengths: Tokens of each row.
        micro_batch: Rows of one forward.
        accumulation: Forwards of a step on one rank.
    """

    lengths: list[int]
    micro_batch: int
    accumulation: int


def draw_mixes(is_quick: bool) -> dict[str, Mix]:
    """The rows that are measured: GSM8K's lengths (log-normal), broad ones (log-uniform), and the maximum."""
    generator = np.random.default_rng(SEED)
    sigma = float(np.sqrt(np.log1p(SHORT_CV**2)))
    short = generator.lognormal(np.log(SHORT_MEAN) - sigma**2 / 2, sigma, 64).clip(16, MAX_LENGTH).astype(int)
    mixed = np.exp(generator.uniform(np.log(32), np.log(MAX_LENGTH), 32)).astype(int)
    return {
        "long": Mix([MAX_LENGTH] * 8, 4, 1),
        "short": Mix(short.tolist(), 8, 2),
        "mixed": Mix(mixed.tolist(), 8, 2),
    }


def cut_micro_batches(noised: list[Noised], micro_batch: int, is_packed: bool) -> list[list[Noised]]:
    """How a rank's rows of one step become its forwards: by their number, sorted by length where they are padded."""
    if not is_packed:
        noised = sorted(noised, key=lambda pair: -len(pair[0].ids))
    return [noised[start : start + micro_batch] for start in range(0, len(noised), micro_batch)]


def write_model(folder: Path) -> None:
    """A LLaDA model with new weights, under its official names."""
    config = LLaDAConfig(
        d_model=512, n_layers=8, n_heads=8, mlp_hidden_size=3 * 512, vocab_size=4096, max_sequence_length=MAX_LENGTH,
        mask_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    weights = NewWeights(config, SEED)
    folder.mkdir()
    config.save_pretrained(folder)
    save_file({name: weights.tensor(name) for name in weights.shapes()}, folder / "model.safetensors")


def draw_rows(mix: Mix, vocab_size: int, world_size: int) -> list[Document]:
    """Rows in the order of training: those of the step that warms up, then each step's, longest first."""
    rows_a_step = mix.micro_batch * mix.accumulation * world_size
    documents = draw_documents([WARM_UP_LENGTH] * rows_a_step + mix.lengths, PROMPT_SHARE, vocab_size, (0,))
    generator = torch.Generator().manual_seed(SEED)
    order = get_length_grouped_indices(mix.lengths, rows_a_step, mega_batch_mult=1, generator=generator)
    return documents[:rows_a_step] + [documents[rows_a_step + index] for index in order]


def write_rows(documents: list[Document], path: Path) -> None:
    """Rows with their noise, as the plain trainer reads them."""
    noises = make_noise_rule(objective_settings(method="lift3", t_sampling="iid"), SEED, 1)(documents, 0, [])
    rows = [
        {
            "input_ids": torch.from_numpy(document.ids),
            "labels": torch.from_numpy(np.where(document.response_mask, document.ids, -100)),
            "attention_mask": torch.ones(len(document.ids), dtype=torch.int64),
            "mask_uniform": torch.tensor(noise.uniforms[0], dtype=torch.float32),
            "tie_uniform": torch.tensor(noise.uniforms[1], dtype=torch.float32),
            "t": noise.t,
            "rho": noise.rho,
            "v": noise.count_uniform,
        }
        for document, noise in zip(documents, noises, strict=True)
    ]
    torch.save(rows, path)


def run_cell(cell: Cell) -> None:
    """Trains on one rank and writes what it took."""
    launch = read_launch()
    start_distributed(launch)
    rows_a_rank = cell.micro_batch * cell.accumulation
    rows_a_step = rows_a_rank * launch.world_size
    documents = torch.load(f"{cell.rows}.documents", weights_only=False)
    before = begin_peak()
    steps = WholeSteps(
        read_config(Path(cell.model)),
        SafetensorsFolder(Path(cell.model)),
        Path(cell.engine_json),
        objective_settings(method=cell.method, t_sampling="iid"),
        rows_a_step,
        launch.world_size,
        is_packed=cell.is_packed,
        has_bf16=False,
        micro_batch=cell.micro_batch,
    )
    marks, losses = [], []
    with attention_kernels(steps.engine.root.kernel):
        gc.freeze()
        for number in range(cell.num_steps):
            own = documents[number * rows_a_step : (number + 1) * rows_a_step][launch.rank :: launch.world_size]
            losses.append(
                steps.step(own, number, cut=lambda noised: cut_micro_batches(noised, cell.micro_batch, cell.is_packed))
            )
            marks.append((time.process_time(), time.perf_counter()))
    write_measured(cell, launch.rank, marks, losses, memory_bytes("VmHWM") - before)
    steps.engine.barrier()
    leave(0)


VARIANTS = {"plain": "plain_trainer.py", "unpacked": "baseline.py", "packed": "baseline.py", "published": "plain_trainer.py"}


@dataclass(frozen=True)
class Measured:
    """One run.

    Args:
        cpu_seconds: Of all ranks together, like the next of all steps but the first.
        wall_seconds: Of the slowest rank.
        peak_bytes: Of the rank with most.
        losses: Of every step, over all ranks.
    """

    cpu_seconds: float
    wall_seconds: float
    peak_bytes: int
    losses: list[float]


def measure(cell: Cell, world_size: int) -> Measured:
    """Runs a cell in processes of its own."""
    Path(cell.out).mkdir()
    script = str(BENCHMARKS / VARIANTS[cell.variant])
    python = [sys.executable]
    if world_size > 1:
        python += ["-m", "torch.distributed.run", "--nproc_per_node", str(world_size), "--standalone"]
    done = subprocess.run(
        [*python, script, *(["--cell"] if script.endswith("baseline.py") else []), json.dumps(asdict(cell))],
        env=os.environ | ENVIRONMENT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    found = [json.loads(path.read_text()) for path in Path(cell.out).glob("*.json")]
    if done.returncode or len(found) != world_size:
        sys.exit(f"{cell}:\n{done.stdout[-4000:]}")
    return Measured(
        sum(rank["cpu_seconds"] for rank in found),
        max(rank["wall_seconds"] for rank in found),
        max(rank["peak_bytes"] for rank in found),
        found[0]["losses"],
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cell")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", nargs="+", default=[])
    arguments = parser.parse_args()
    if arguments.cell:
        run_cell(Cell(**json.loads(arguments.cell)))
        return
    folder = Path(tempfile.mkdtemp())
    write_model(folder / "model")
    figures = {}
    for world_size in WORLD_SIZES:
        for name, mix in draw_mixes(False).items():
            documents = draw_rows(mix, 4096, world_size)
            path = folder / f"{name}-{world_size}.rows"
            write_rows(documents, path)
            torch.save(documents, f"{path}.documents")
            for method in METHODS:
                for variant in VARIANTS:
                    key = f"{name}/{method}/{world_size}/{variant}"
                    if arguments.only and not any(part in key for part in arguments.only):
                        continue
                    cell = Cell(
                        variant, str(folder / "model"), str(path), method, mix.micro_batch, mix.accumulation,
                        len(documents) // (mix.micro_batch * mix.accumulation * world_size),
                        MAX_LENGTH if variant == "published" else None, variant == "packed", str(ENGINE_JSON),
                        str(folder / key.replace("/", "-")),
                    )
                    m = measure(cell, world_size)
                    print(key, m, m.cpu_seconds / sum(mix.lengths) * 1e3, flush=True)


if __name__ == "__main__":
    main()
