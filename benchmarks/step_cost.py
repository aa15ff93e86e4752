"""What LIFT-3 costs: whole optimizer steps of vanilla SFT, exact scoring and buffer scoring, on the same tokens.

    deepspeed --num_gpus 2 benchmarks/step_cost.py --json step_cost.json

Full fine-tuning under ZeRO-3 (`ds_configs/zero3.json`) with gradient checkpointing, bf16: 8 layers, width 512, V =
8,192 (the head has 13 % of the weights; 6 % in LLaDA-8B); documents of 512 tokens, 448 of them response, 4 a rank and
step. One engine per variant, from the same weights, in one launch; steps are interleaved, and each round of them sees
the same documents and levels. A step is forward, backward, update, difficulty table and all. Ratios are of mean
seconds, with 95 % intervals from a bootstrap over rounds; `*_over_vanilla` is the upper end. `--quick` is a smoke
test and never quoted.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import numpy as np
from whole_steps import SEED, WholeSteps, draw_documents

from lift_ds.models.llada import LLaDAConfig
from lift_ds.models.weights import NewWeights
from lift_ds.objectives import objective_settings
from lift_ds.ranks.launch import read_launch
from lift_ds.ranks.running import leave
from lift_ds.training.engine import start_distributed

DS_JSON = Path(__file__).resolve().parents[1] / "ds_configs" / "zero3.json"
REFRESH_SHARE = 0.125
OBJECTIVES = {
    "vanilla": objective_settings(method="vanilla"),
    "exact": objective_settings(method="lift3"),
    "buffer": objective_settings(method="lift3", scoring="buffer", refresh_share=REFRESH_SHARE, warm_start_steps=0),
    "buffer, no refresh": objective_settings(method="lift3", scoring="buffer", refresh_share=0.0, warm_start_steps=0),
}
PROMPT_SHARE = 0.125
MICRO_BATCH = 4


def interval(top: list[float], bottom: list[float]) -> tuple[float, float, float]:
    """Ratio of means, and the ends of its 95 % interval: bootstrap over pairs."""
    pairs = np.array([top, bottom]).T
    chosen = np.random.default_rng(0).integers(len(pairs), size=(4000, len(pairs)))
    ratios = pairs[chosen].mean(1)
    low, high = np.quantile(ratios[:, 0] / ratios[:, 1], [0.025, 0.975])
    return float(pairs[:, 0].mean() / pairs[:, 1].mean()), float(low), float(high)


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=60, help="steps of each variant, after three that warm up")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--quick", action="store_true", help="a smoke test with small shapes")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    launch = read_launch()
    start_distributed(launch)
    width, num_layers, vocabulary, length = (64, 2, 512, 64) if arguments.quick else (512, 8, 8192, 512)
    config = LLaDAConfig(
        d_model=width,
        n_layers=num_layers,
        n_heads=8,
        mlp_hidden_size=3 * width,
        vocab_size=vocabulary,
        max_sequence_length=length,
        mask_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    documents_a_step, weights = MICRO_BATCH * launch.world_size, NewWeights(config, SEED)
    variants = {
        name: WholeSteps(
            config, weights, DS_JSON, objective, documents_a_step, launch.world_size, num_checkpointed=num_layers
        )
        for name, objective in OBJECTIVES.items()
    }
    for number in range(3 + (3 if arguments.quick else arguments.pairs)):
        documents = draw_documents([length] * MICRO_BATCH, PROMPT_SHARE, vocabulary, (launch.rank, number))
        order = list(variants.values())
        for turn in range(len(order)):
            order[(turn + number) % len(order)].step(documents, number)
    if launch.is_main:
        report(variants, arguments.quick, arguments.json)
    leave(0)


def report(variants: dict[str, WholeSteps], is_quick: bool, path: Path | None) -> None:
    """Prints the table and writes the figures."""
    figures: dict[str, float | bool] = {"quick": is_quick, "refresh_share": REFRESH_SHARE}
    baseline = variants["vanilla"].seconds[3:]
    figures["pairs"] = len(baseline)
    print(f"{'':20}{'s a step':>10}{'scoring s':>11}{'/ vanilla':>11}{'95 %':>16}")
    for name, variant in variants.items():
        ratio, low, high = interval(variant.seconds[3:], baseline)
        scoring = statistics.mean(variant.scoring_seconds[3:])
        print(
            f"{name:20}{statistics.mean(variant.seconds[3:]):>10.3f}{scoring:>11.3f}{ratio:>11.3f}"
            f"{f'{low:.3f} - {high:.3f}':>16}"
        )
        if name != "vanilla":
            key = name.replace(", ", "_").replace(" ", "_")
            figures |= {f"{key}_over_vanilla": high, f"{key}_over_vanilla_mean": ratio}
            figures[f"{key}_scoring_share"] = scoring / statistics.mean(variant.seconds[3:])
    if path:
        path.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
