"""Micro-batches: what their size costs, what packing short rows brings, and how even the ranks' shares of a step are.

    python benchmarks/micro_batches.py --json micro_batches.json

- Size: forward and backward of vanilla SFT at width 512 and 8 layers, documents of 256 tokens in the mean (coefficient
  of variation .6, the longest first), in micro-batches of at most so many tokens. Process CPU seconds per token that is
  computed, padding counted, and peak resident memory beyond weights and gradients, each in a process of its own; the
  share of padding in steps of 64 documents.
- Packing: the built-in model on one step of its own rows, packed or padded, in the same micro-batches: interleaved
  pairs, process CPU seconds.
- Shares: what the slowest rank computes, over the mean of all without any padding, where the ranks wait for each other
  in every micro-batch, as under ZeRO-3. Slot j to rank j mod N, each rank cutting its own, against `BatchRule.cut` over
  all ranks; lengths are drawn, nothing is computed.

`--quick` is a smoke test and never quoted.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from lift_ds import load_pretrained
from lift_ds.config.run import RunConfig
from lift_ds.data.batch import Document, MicroBatch, collate
from lift_ds.data.order.dealing import BatchRule
from lift_ds.models.llada import LLaDAConfig, LLaDAModelLM
from lift_ds.objectives import make_objective, objective_settings
from lift_ds.training.draws import make_noise_rule
from lift_ds.training.inputs import prepare
from lift_ds.training.step import DiffusionStep

MEAN_LENGTH, VARIATION = 256, 0.6
BUDGETS = (1024, 2048, 4096, 8192)
RANKS, SHARES = 8, (2, 4, 8, 16, 32)
MIB = 1 << 20


def draw_lengths(count: int, mean: int, seed: int) -> list[int]:
    """Log-normal lengths of 16 to 4,096 tokens."""
    variance = np.log1p(VARIATION**2)
    drawn = mean * np.exp(np.random.default_rng(seed).normal(-variance / 2, np.sqrt(variance), count))
    return [int(length) for length in drawn.clip(16, 4096)]


def make_batches(documents: list[Document], rule: BatchRule) -> list[MicroBatch]:
    """A step's micro-batches, of one rank."""
    parts = rule.cut([rule.size([len(document.ids)]) for document in documents], 1)[0]
    noises = make_noise_rule(objective_settings(method="vanilla"), 0, len(documents))(
        documents, 0, [(slot, 0) for slot in range(len(documents))]
    )
    return [collate([documents[place] for place in part], [noises[place] for place in part], 0) for part in parts]


def run_batches(root: DiffusionStep, batches: list[MicroBatch]) -> float:
    """Forward and backward of all; process CPU seconds."""
    began = time.process_time()
    for batch in batches:
        loss, _ = root(batch, torch.full_like(batch.t, 1e-3))
        loss.backward()
    return time.process_time() - began


def measure_budget(budget: int, is_quick: bool) -> dict[str, float]:
    """In this process: seconds a token, padding counted, MiB beyond weights and gradients; and the share of padding."""
    width, num_layers, num_tokens = (64, 2, 2048) if is_quick else (512, 8, max(budget, 4096))
    config = LLaDAConfig(
        d_model=width, n_layers=num_layers, n_heads=8, mlp_hidden_size=3 * width, vocab_size=4096,
        mask_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    root = DiffusionStep(LLaDAModelLM(config), make_objective(objective_settings(method="vanilla")))
    documents = [
        Document(np.full(length, 2), np.ones(length, bool), np.zeros(length, bool), number, 0, "")
        for number, length in enumerate(draw_lengths(num_tokens // MEAN_LENGTH, MEAN_LENGTH, 0))
    ]
    run_batches(root, make_batches(documents[:1], BatchRule(1)))  # the gradients are there
    batches = make_batches(documents, BatchRule(max_tokens=budget))
    gc.collect()
    before = resident_mib()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak is that of what follows
    seconds = run_batches(root, batches)
    computed = sum(batch.clean_ids.numel() for batch in batches)
    return {"seconds": seconds / computed, "mib": peak_mib() - before, "padding": mean_padding(budget)}


def mean_padding(budget: int) -> float:
    """Share of padding in steps of 64 documents."""
    rule, shares = BatchRule(max_tokens=budget), []
    for seed in range(50):
        lengths = draw_lengths(64, MEAN_LENGTH, seed)
        parts = rule.cut([rule.size([length]) for length in lengths], 1)[0]
        shares.append(1 - sum(lengths) / sum(len(part) * max(lengths[place] for place in part) for part in parts))
    return statistics.mean(shares)


def resident_mib() -> float:
    """What is resident now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() / MIB


def peak_mib() -> float:
    """The most that was resident since the last reset."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def measure_packing(num_pairs: int, num_rows: int) -> dict[str, float]:
    """CPU seconds of packed over padded micro-batches of the same built-in rows."""
    prepared = prepare(
        RunConfig.model_validate({"data": {"pad_targets": "all", "pad_to_multiple": 48, "check_rows": 0}})
    )
    documents = list(prepared.data.reader.by_sample_id(range(num_rows)))
    model, _ = load_pretrained(prepared.folder)
    batches = make_batches(documents, BatchRule(max_tokens=8192))
    tokens = sum(len(document.ids) for document in documents)
    seconds = []
    for _ in range(num_pairs + 1):
        pair = [
            run_batches(
                DiffusionStep(model.float(), make_objective(objective_settings(method="vanilla")), is_packed=packed),
                batches,
            )
            for packed in (True, False)
        ]
        seconds.append(pair[0] / pair[1])
    return {
        "packed_over_padded": statistics.median(seconds[1:]),
        "mean_length": tokens / num_rows,
        "builtin_padding": 1 - tokens / sum(batch.clean_ids.numel() for batch in batches),
    }


def step_cost(cuts: list[list[list[int]]], lengths: list[int], rule: BatchRule) -> float:
    """Cost of a step whose ranks wait for each other after every micro-batch."""
    rounds = max(len(of_rank) for of_rank in cuts)
    costs = [
        [rule.size([max(lengths[place] for place in part)]).cost * len(part) if part else 0.0 for part in of_rank]
        for of_rank in cuts
    ]
    return sum(max(each[number] if number < len(each) else 0.0 for each in costs) for number in range(rounds))


def measure_shares(num_steps: int) -> dict[str, float]:
    """Cost of a step over the ideal, dealt by turns and by cost, of documents of 700 tokens in the mean."""
    rule, found = BatchRule(max_tokens=8192, pair_cost=1 / (6 * 4096)), dict[str, float]()
    for share in SHARES:
        ratios = []
        for step in range(num_steps):
            lengths = draw_lengths(share * RANKS, 700, step)
            ideal = rule.size(lengths).cost / RANKS
            by_turns = []
            for rank in range(RANKS):
                own = list(range(rank, len(lengths), RANKS))
                parts = rule.cut([rule.size([lengths[place]]) for place in own], 1)[0]
                by_turns.append([[own[place] for place in part] for part in parts])
            by_cost = rule.cut([rule.size([length]) for length in lengths], RANKS)
            ratios.append([step_cost(cut, lengths, rule) / ideal for cut in (by_turns, by_cost)])
        turns, cost = np.mean(ratios, 0).tolist()
        found |= {f"by_turns_{share}": turns, f"by_cost_{share}": cost}
    return found


def main() -> None:
    """Measures, prints a table, writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--quick", action="store_true", help="a smoke test")
    parser.add_argument("--budget", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.budget:
        print(json.dumps(measure_budget(arguments.budget, arguments.quick)))
        return
    figures: dict[str, float] = {}
    for budget in BUDGETS[:2] if arguments.quick else BUDGETS:
        command = [sys.executable, __file__, "--budget", str(budget), *(["--quick"] if arguments.quick else [])]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
        print(
            f"{budget:6,} tokens: {1e6 * found['seconds']:8.1f} us a token, {found['mib']:8.0f} MiB, "
            f"{found['padding']:.1%} padding",
            flush=True,
        )
        figures |= {f"{name}_{budget}": value for name, value in found.items()}
    figures |= measure_packing(*((1, 8) if arguments.quick else (8, 96)))
    print(
        f"packed / padded {figures['packed_over_padded']:.2f}: rows of "
        f"{figures['mean_length']:.0f} tokens, {figures['builtin_padding']:.1%} padding"
    )
    figures |= measure_shares(2 if arguments.quick else 200)
    for share in SHARES:
        print(
            f"{share:3} documents a rank, {RANKS} ranks: {figures[f'by_turns_{share}']:.2f} by turns, "
            f"{figures[f'by_cost_{share}']:.2f} by cost"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(figures | ({"quick": True} if arguments.quick else {}), indent=1) + "\n")


if __name__ == "__main__":
    main()
