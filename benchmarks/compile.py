"""Whether torch.compile of the decoder layers pays: training steps on texts of real lengths, against eager ones.

    python benchmarks/compile.py --json compile.json

A step is LIFT-3's whole forward (scoring, choosing, training) and backward of one micro-batch of four documents,
padded to the longest or packed one after the other: docstrings of Python's standard library, tokenised by the
built-in base, cut at 512 tokens. Two sizes: the built-in base, and that of `step_cost.py` (width 512, 8 layers, V =
8,192, bf16); padded ones also with gradient checkpointing. Seconds are the process's on a CPU, the clock's on a GPU.
Eager and compiled models have the same weights and take turns on the same batches, after the same warm-up batches,
whose seconds are given too: they hold the compilations. `*_compile_time_ratio` is the ratio of the medians, below 1
where compiling is faster; `*_graphs` counts compiled graphs up to the end of the warm-up, `*_recompiled` those that
came after it. Runs on the GPU where there is one. `--quick` is a smoke test and never quoted.
"""

from __future__ import annotations

import argparse
import copy
import json
import runpy
import statistics
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch._dynamo.utils import counters
from transformers import PreTrainedModel

from lift_ds import load_pretrained
from lift_ds.data.batch import Document, MicroBatch, collate
from lift_ds.models.llada import LLaDAConfig, LLaDAModelLM
from lift_ds.objectives import make_objective, objective_settings
from lift_ds.training.draws import make_noise_rule
from lift_ds.training.normalizer import document_scale, step_counts
from lift_ds.training.run import compile_layers
from lift_ds.training.step import DiffusionStep

MICRO_BATCH = 4
LONGEST = 512
SEED = 3
STRIDE = 37  # rows of one module are alike
DOCSTRINGS = Path(__file__).resolve().parents[1] / "tools" / "make_docstring_rows.py"
LIFT3 = objective_settings(method="lift3")
VARIANTS = ("eager", "compiled")


@dataclass(frozen=True)
class Setting:
    """A model's size, and how its documents go through it.

    Args:
        size: `base` or `wide`.
        way: `padded`, `checkpointed` (padded, layers computed again in the backward pass) or `packed`.
    """

    size: str
    way: str

    @property
    def name(self) -> str:
        """What its figures are called."""
        return f"{self.size}_{self.way}"


def make_root(setting: Setting, is_quick: bool) -> DiffusionStep:
    """The root module that a run trains."""
    torch.manual_seed(SEED)
    if setting.size == "base":
        model: Any = load_pretrained("builtin:base")[0]
    else:
        width, num_layers = (64, 2) if is_quick else (512, 8)
        config = LLaDAConfig(
            d_model=width,
            n_layers=num_layers,
            n_heads=8,
            mlp_hidden_size=3 * width,
            vocab_size=8192,
            max_sequence_length=LONGEST,
            mask_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
        model = LLaDAModelLM(config).bfloat16()
    if setting.way == "checkpointed":
        model.checkpoint_layers(int(model.config.num_hidden_layers))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    root = DiffusionStep(model.to(device), make_objective(LIFT3), is_packed=setting.way == "packed")
    return root.train()


def draw_batches() -> Iterator[MicroBatch]:
    """Micro-batches of docstrings, always the same ones."""
    tokenizer: Any = load_pretrained("builtin:base")[1]
    noise_rule = make_noise_rule(LIFT3, SEED, MICRO_BATCH)
    rows = list(runpy.run_path(str(DOCSTRINGS))["make_rows"](Path(sysconfig.get_paths()["stdlib"])))
    documents = []
    for index in range(len(rows)):
        row = rows[index * STRIDE % len(rows)]
        prompt, response = (tokenizer(row[key], add_special_tokens=False).input_ids for key in ("prompt", "response"))
        ids = np.array((prompt + response)[:LONGEST])
        is_response = np.arange(len(ids)) >= len(prompt)
        if is_response.any():
            documents.append(Document(ids, is_response, is_response & False, index, 0, row["prompt"]))
    for step in range(len(documents) // MICRO_BATCH):
        chosen = documents[step * MICRO_BATCH : (step + 1) * MICRO_BATCH]
        noises = noise_rule(chosen, step, [(slot, 0) for slot in range(MICRO_BATCH)])
        yield collate(chosen, noises, pad_token_id=1)


def timed_step(root: DiffusionStep, batch: MicroBatch) -> tuple[float, float]:
    """Seconds and loss of one forward and backward."""
    totals = step_counts([batch], root.objective)
    device = next(root.parameters()).device
    batch = batch.to(device)
    scale = document_scale(batch, "response_tokens", totals, 1).to(device)
    root.zero_grad(set_to_none=False)
    synchronize()
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    began = clock()
    loss, _ = root(batch, scale)
    loss.backward()
    synchronize()
    return clock() - began, float(loss.detach())


def synchronize() -> None:
    """Waits for the GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def measure(setting: Setting, batches: list[MicroBatch], num_warmup: int, is_quick: bool) -> dict[str, float]:
    """Figures of one setting."""
    torch._dynamo.reset()
    counters.clear()
    eager = make_root(setting, is_quick)
    roots = {"eager": eager, "compiled": copy.deepcopy(eager)}
    compile_layers(cast(PreTrainedModel, roots["compiled"].model))
    seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    errors, num_graphs = [], 0
    for number, batch in enumerate(batches):
        if number == num_warmup:
            num_graphs = counters["stats"]["unique_graphs"]
        losses = {}
        for name in VARIANTS[:: 1 if number % 2 else -1]:
            elapsed, losses[name] = timed_step(roots[name], batch)
            seconds[name].append(elapsed)
        errors.append(abs(losses["compiled"] - losses["eager"]) / abs(losses["eager"]))
    median = {name: statistics.median(times[num_warmup:]) for name, times in seconds.items()}
    return {
        "seconds_eager": median["eager"],
        "seconds_compiled": median["compiled"],
        "compile_time_ratio": median["compiled"] / median["eager"],
        "warmup_seconds_eager": sum(seconds["eager"][:num_warmup]),
        "warmup_seconds_compiled": sum(seconds["compiled"][:num_warmup]),
        "graphs": num_graphs,
        "recompiled": counters["stats"]["unique_graphs"] - num_graphs,
        "largest_loss_error": max(errors),
    }


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40, help="steps of each variant, after those that warm up")
    parser.add_argument("--warmup", type=int, default=8, help="steps before, with the compilations")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--quick", action="store_true", help="a smoke test with small shapes")
    arguments = parser.parse_args()
    rounds, warmup = (2, 2) if arguments.quick else (arguments.rounds, arguments.warmup)
    batches = list(islice(draw_batches(), warmup + rounds))
    settings = [Setting(size, way) for size in ("base", "wide") for way in ("padded", "checkpointed", "packed")]
    lengths = [batch.clean_ids.shape[1] for batch in batches]
    figures: dict[str, float | bool] = {"quick": arguments.quick, "rounds": rounds, "lengths": len(set(lengths))}
    print(f"{len(set(lengths))} lengths from {min(lengths)} to {max(lengths)}")
    print(f"{'':20}{'eager s':>9}{'compiled s':>12}{'ratio':>8}{'warm-up s':>11}{'graphs':>8}{'later':>7}{'loss':>10}")
    for setting in settings[-1:] if arguments.quick else settings:
        measured = measure(setting, batches, warmup, arguments.quick)
        figures |= {f"{setting.name}_{key}": value for key, value in measured.items()}
        print(
            f"{setting.name:20}{measured['seconds_eager']:>9.3f}{measured['seconds_compiled']:>12.3f}"
            f"{measured['compile_time_ratio']:>8.2f}{measured['warmup_seconds_compiled']:>11.1f}{measured['graphs']:>8.0f}"
            f"{measured['recompiled']:>7.0f}{measured['largest_loss_error']:>10.1e}"
        )
    figures["compile_time_ratio"] = max(value for key, value in figures.items() if key.endswith("_compile_time_ratio"))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
