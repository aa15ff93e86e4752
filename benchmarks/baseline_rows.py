"""Models and rows of `benchmarks/baseline.py`: what is measured, on how many ranks, and by whom."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from shutil import copy

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers.trainer_pt_utils import get_length_grouped_indices
from whole_steps import SEED, draw_documents

from lift_ds.data.batch import Document
from lift_ds.models.llada import LLaDAConfig
from lift_ds.models.weights import NewWeights, resolve_folder
from lift_ds.objectives import objective_settings
from lift_ds.training.draws import make_noise_rule

METHODS, RANK_COUNTS = ("vanilla", "lift3"), (1, 2)
MAX_LENGTH, PROMPT_SHARE, WARM_UP_LENGTH = 1024, 0.25, 24
SHORT_MEAN, SHORT_CV = 150.0, 0.55  # tokens of a GSM8K row, and their spread
MODELS = {"small": (512, 8, 4096), "large_vocabulary": (64, 2, 126_464), "quick": (64, 2, 2048)}  # width, layers, V


@dataclass(frozen=True)
class Mix:
    """Rows, and who trains on them.

    Args:
        lengths: Tokens of each row.
        micro_batch: Rows of one forward.
        accumulation: Forwards of a step on each rank.
        variants: Who trains: plain, grouped, published; ours unpacked, packed.
        model: Of `MODELS`.
        rank_counts: Numbers of ranks.
        methods: Of `METHODS`.
        is_memory: Whether memory is what is wanted.
        maximum: Tokens to which the published recipe pads.
    """

    lengths: list[int]
    micro_batch: int
    accumulation: int
    variants: tuple[str, ...]
    model: str = "small"
    rank_counts: tuple[int, ...] = RANK_COUNTS
    methods: tuple[str, ...] = METHODS
    is_memory: bool = False
    maximum: int = MAX_LENGTH


def draw_mixes(is_quick: bool) -> dict[str, Mix]:
    """What is measured, in order. On two ranks a run has the same rows in half as many steps."""
    recipes = ("plain", "unpacked", "packed", "published")
    check = Mix([40, 24, 90, 17, 64, 33, 120, 50], 4, 2, recipes, rank_counts=(1,), maximum=128)
    if is_quick:
        small = partial(Mix, [40, 24, 90, 17], 2, 1, ("plain", "unpacked"), "quick", (1,), ("lift3",))
        return {"check": small(), "short": small()}
    generator = np.random.default_rng(SEED)
    sigma = float(np.sqrt(np.log1p(SHORT_CV**2)))
    short = generator.lognormal(np.log(SHORT_MEAN) - sigma**2 / 2, sigma, 64).clip(16, MAX_LENGTH).astype(int)
    mixed = np.exp(generator.uniform(np.log(32), np.log(MAX_LENGTH), 32)).astype(int)
    every = ("plain", "unpacked", "packed", "grouped")
    return {
        "check": check,
        "long": Mix([MAX_LENGTH] * 8, 4, 1, ("plain", "unpacked")),
        "mixed": Mix(mixed.tolist(), 8, 2, every),
        "short": Mix(short.tolist(), 8, 2, every),
        "padded": Mix([int(SHORT_MEAN)] * 8, 4, 1, ("published",)),
        "small_vocabulary": Mix([512] * 16, 8, 1, ("plain", "unpacked"), is_memory=True),
        "large_vocabulary": Mix([256] * 8, 4, 1, ("plain", "unpacked"), "large_vocabulary", is_memory=True),
    }


def write_model(name: str, folder: Path) -> None:
    """A LLaDA model with new weights under its official names, beside the built-in base's tokenizer."""
    width, layers, vocabulary = MODELS[name]
    config = LLaDAConfig(
        d_model=width, n_layers=layers, n_heads=8, mlp_hidden_size=3 * width, vocab_size=vocabulary,
        max_sequence_length=MAX_LENGTH, mask_token_id=2, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    weights = NewWeights(config, SEED)
    config.save_pretrained(folder)
    save_file({name: weights.tensor(name) for name in weights.shapes()}, folder / "model.safetensors")
    for path in resolve_folder("builtin:base").iterdir():
        if path.suffix in (".json", ".jinja") and path.name != "config.json":
            copy(path, folder)


def write_rows(mix: Mix, is_grouped: bool, num_ranks: int, path: Path) -> int:
    """Rows with their noise, in the order of training; the number of steps.

    First those of a short step that warms up, then each step's, longest first, by the function of Trainer's sampler.
    """
    rows_a_step = mix.micro_batch * mix.accumulation * num_ranks
    num_steps = len(mix.lengths) // rows_a_step
    lengths = [WARM_UP_LENGTH] * rows_a_step + mix.lengths
    drawn = draw_documents(lengths, PROMPT_SHARE, MODELS[mix.model][2], (len(mix.lengths),))
    generator = torch.Generator().manual_seed(SEED)
    order = get_length_grouped_indices(mix.lengths, rows_a_step, num_steps if is_grouped else 1, generator)
    documents = drawn[:rows_a_step] + [drawn[rows_a_step + index] for index in order]
    torch.save(documents, f"{path}.documents")
    torch.save(list(as_plain_rows(documents)), path)
    return 1 + num_steps


def as_plain_rows(documents: list[Document]) -> Iterator[dict[str, Tensor | float]]:
    """Documents with the noise that ours draws for them, as the plain trainer reads them."""
    noises = make_noise_rule(objective_settings(method="lift3", t_sampling="iid"), SEED, 1)(documents, 0, [])
    for document, noise in zip(documents, noises, strict=True):
        yield {
            "input_ids": torch.from_numpy(document.ids),
            "labels": torch.from_numpy(np.where(document.response_mask, document.ids, -100)),
            "attention_mask": torch.ones(len(document.ids), dtype=torch.int64),
            "mask_uniform": torch.tensor(noise.uniforms[0], dtype=torch.float32),
            "tie_uniform": torch.tensor(noise.uniforms[1], dtype=torch.float32),
            "t": float(noise.t),
            "rho": float(noise.rho),
            "v": float(noise.count_uniform),
        }


def write_texts(path: Path, num_rows: int) -> None:
    """Sums as rows of `prompt` and `response`."""
    pairs = [random.Random(SEED + row).sample(range(1000), 2) for row in range(num_rows)]
    rows = [{"prompt": f"What is {a} + {b}?", "response": f"{a} + {b} = {a + b}."} for a, b in pairs]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
