"""What block diffusion costs: training against plain masked diffusion, memory, packs, and answers with kept keys.

    python benchmarks/block_models.py --json block_models.json

A model of SDAR's shape with 20 million parameters (8 layers, width 384, six heads of 64 in groups of three, V = 8,192,
blocks of 4), float32, against the same layers as plain masked diffusion: `block_sft_loss` and `sft_loss` of the same
document of 1,024 tokens, half of them masked, forward and backward.

    block_over_plain_time     seconds a token, medians of interleaved rounds
    block_over_plain_memory   peak beyond weights and gradients, each in a fresh process, medians
    block_pack_fill           packs of 4,096 tokens of documents filled up to whole blocks (log-normal, median 400)
    block_cache_speedup       256 tokens after 32, one a forward: a loop that computes all from the beginning each time,
                              over `generate_blocks`, which gives the same text; medians of interleaved rounds

`--quick` is a smoke test and never quoted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from data_files import PACK_LENGTH, STEP_ROWS, open_steps, steps_of, write_rows
from loss_memory import memory_bytes
from torch import Tensor

import lift_ds
from lift_ds.data.text.chat import ChatEncoder
from lift_ds.models.a2d import A2DQwen3Config, A2DQwen3ModelLM
from lift_ds.models.layers import MaskedDiffusionModel
from lift_ds.models.sdar import SDARConfig, SDARForCausalLM
from lift_ds.models.vocabulary import load_tokenizer
from lift_ds.models.weights import NewWeights, fill_parameters

BASE = Path(__file__).resolve().parents[1] / "lift_ds" / "assets" / "base"
BLOCK_SIZE, MASK_ID, END_ID = 4, 0, 1
LEVEL = 0.5
KINDS = ("plain", "block")
SHARPNESS = 10.0  # of the untrained model's predictions, so that float32 cannot change which is surest


def make_model(kind: str, is_quick: bool) -> MaskedDiffusionModel:
    """The model, with new weights and room for gradients; the same weights for both kinds."""
    width, num_layers = (96, 2) if is_quick else (384, 8)
    sizes: dict[str, Any] = {
        "hidden_size": width,
        "intermediate_size": 3 * width,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": width // 6,
        "vocab_size": 8192,
        "max_position_embeddings": 4096,
        "mask_token_id": MASK_ID,
        "eos_token_id": END_ID,
        "pad_token_id": END_ID,
    }
    if kind == "block":
        model: MaskedDiffusionModel = SDARForCausalLM(SDARConfig(**sizes, block_size=BLOCK_SIZE))
    else:
        model = A2DQwen3ModelLM(A2DQwen3Config(**sizes | {"right_shift_logits": False}))
    fill_parameters(model.named_parameters(), NewWeights(model.config, 0), "new")
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return model.train()


def train(model: MaskedDiffusionModel, kind: str, length: int) -> float:
    """A forward and backward over one document; its seconds."""
    generator = torch.Generator().manual_seed(length)
    clean_ids = torch.randint(2, 8192, (1, length), generator=generator)
    masked = torch.rand(1, length, generator=generator) < LEVEL
    began = time.perf_counter()
    if kind == "block":
        loss = lift_ds.block_sft_loss(model, clean_ids, masked, torch.full((1, length), 1 / LEVEL), length)
    else:
        loss = lift_ds.sft_loss(model, clean_ids, masked, torch.tensor([LEVEL]), length)
    loss.backward()
    return time.perf_counter() - began


def peak_bytes(kind: str, length: int, is_quick: bool) -> int:
    """Most memory of this process in a step, beyond what it has before."""
    model = make_model(kind, is_quick)
    train(model, kind, 16)  # what the first use of a kernel takes
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    before = memory_bytes("VmRSS")
    train(model, kind, length)
    return memory_bytes("VmHWM") - before


def in_a_process(kind: str, is_quick: bool) -> int:
    """`peak_bytes` of a process of its own."""
    command = [sys.executable, __file__, "--peak", kind, *(["--quick"] if is_quick else [])]
    return int(subprocess.run(command, check=True, text=True, capture_output=True).stdout.split()[-1])


@torch.no_grad()
def without_cache(model: MaskedDiffusionModel, prompt_ids: Tensor, gen_length: int) -> Tensor:
    """A plain loop: each forward sees all tokens so far and reveals the surest one of the last block."""
    ids = torch.cat([prompt_ids, prompt_ids.new_full((gen_length,), MASK_ID)])[None]
    for start in range(len(prompt_ids), ids.shape[1], BLOCK_SIZE):
        block = slice(start, start + BLOCK_SIZE)
        for _ in range(BLOCK_SIZE):
            logits = model.head(model.encode(ids[:, : block.stop])[:, block]).float()
            logits[..., MASK_ID] = -torch.inf
            confidence, predicted = logits.softmax(-1).max(-1)
            surest = confidence.masked_fill(ids[:, block] != MASK_ID, -1.0).argmax(-1)
            ids[0, start + surest] = predicted[0, surest]
    return ids[0]


def interleaved(actions: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each action; a first round warms up, and every other one begins with the next action."""
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    names = list(actions)
    for number in range(rounds + 1):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            began = time.perf_counter()
            actions[name]()
            seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(each[1:]) for name, each in seconds.items()}


def pack_fill(is_quick: bool) -> float:
    """Part of packs that documents fill, each of whole blocks."""
    tokenizer = load_tokenizer(BASE)
    assert tokenizer is not None
    encoder = ChatEncoder(tokenizer, int(tokenizer.eos_token_id), PACK_LENGTH, pad_targets="none")
    num_steps = 2 if is_quick else 10
    lengths = np.random.default_rng(2).lognormal(np.log(400), 0.8, num_steps * 1500).clip(8, PACK_LENGTH)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.parquet"
        write_rows(path, np.ceil(lengths / BLOCK_SIZE).astype(int) * BLOCK_SIZE, 2, encoder.num_ids)
        steps = steps_of(open_steps([path], encoder, PACK_LENGTH))
        num_tokens = sum(next(steps).num_tokens for _ in range(num_steps))
    return float(num_tokens / (num_steps * STEP_ROWS * PACK_LENGTH))


def print_costs(label: str, values: dict[str, float], ratio: float) -> None:
    """A table of plain and block."""
    print(f"\n| a step | plain | block | block / plain |\n| --- | --- | --- | --- |\n| {label} | ", end="")
    print(f"{values['plain']:.4g} | {values['block']:.4g} | {ratio:.2f} |")


def training(is_quick: bool, rounds: int) -> dict[str, float]:
    """Seconds of a step."""
    length = 128 if is_quick else 1024
    models = {kind: make_model(kind, is_quick) for kind in KINDS}
    seconds = interleaved({kind: partial(train, models[kind], kind, length) for kind in KINDS}, rounds)
    num_parameters = sum(parameter.numel() for parameter in models["block"].parameters())
    ratio = seconds["block"] / seconds["plain"]
    print_costs(f"seconds, {num_parameters / 1e6:.1f} million parameters", seconds, ratio)
    return {
        "million_parameters": num_parameters / 1e6,
        "block_over_plain_time": ratio,
        **{f"{kind}_seconds": seconds[kind] for kind in KINDS},
    }


def memory(is_quick: bool, rounds: int) -> dict[str, float]:
    """Peaks of a step; three processes each, or one."""
    count = 1 if is_quick else 3
    peaks = {kind: statistics.median(in_a_process(kind, is_quick) for _ in range(count)) / 2**20 for kind in KINDS}
    ratio = peaks["block"] / peaks["plain"]
    print_costs("peak beyond weights and gradients, MiB", peaks, ratio)
    return {"block_over_plain_memory": ratio, **{f"{kind}_peak_mib": peaks[kind] for kind in KINDS}}


def packs(is_quick: bool, rounds: int) -> dict[str, float]:
    """How full packs are."""
    fill = pack_fill(is_quick)
    print(f"\npacks: {fill:.1%} full")
    return {"block_pack_fill": fill}


def answers(is_quick: bool, rounds: int) -> dict[str, float]:
    """Seconds of an answer, by the loop and with kept keys.

    Raises:
        AssertionError: The texts differ.
    """
    gen_length, model = 16 if is_quick else 256, make_model("block", is_quick).eval()
    with torch.no_grad():
        model.get_output_embeddings().weight *= SHARPNESS
    prompt_ids = torch.randint(2, 8192, (32,), generator=torch.Generator().manual_seed(1))
    given: dict[str, Tensor] = {}
    seconds = interleaved(
        {
            "loop": lambda: given.update(loop=without_cache(model, prompt_ids, gen_length)),
            "kept": lambda: given.update(kept=lift_ds.generate_blocks(model, prompt_ids, gen_length, BLOCK_SIZE)),
        },
        1 if is_quick else 3,
    )
    assert torch.equal(given["loop"], given["kept"]), "the texts differ"
    speedup = seconds["loop"] / seconds["kept"]
    print(f"\n| an answer of {gen_length} tokens | seconds |\n| --- | --- |\n| plain loop | {seconds['loop']:.1f} |")
    print(f"| `generate_blocks`, {speedup:.2f} times as fast, the same text | {seconds['kept']:.1f} |")
    return {"block_cache_speedup": speedup, **{f"{name}_answer_seconds": each for name, each in seconds.items()}}


PARTS = {"training": training, "memory": memory, "packs": packs, "answers": answers}


def main() -> None:
    """Measures, prints the table and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="of training (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--quick", action="store_true", help="a smoke test: a small model, two rounds")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts (default: all)")
    parser.add_argument("--peak", choices=KINDS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        print(peak_bytes(arguments.peak, 128 if arguments.quick else 1024, arguments.quick))
        return
    figures: dict[str, float] = {}
    for name in arguments.only:
        figures |= PARTS[name](arguments.quick, 2 if arguments.quick else arguments.rounds)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures | {"quick": arguments.quick}, indent=1) + "\n")


if __name__ == "__main__":
    main()
