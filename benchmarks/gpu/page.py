"""What the parts found, as flat figures, and the page of tables that is made from these.

python benchmarks/gpu/page.py     docs/results/gpu.md from docs/results/gpu.json, or without it: not measured
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"
COMMAND = "python benchmarks/gpu/run.py --out gpu_results"
Found = dict[str, dict[str, Any]]
Figures = dict[str, Any]
MISSING = "not measured"
MACHINE = ("device", "torch", "commit", "quick", "date")
RIGHT = {
    "float32_logits_difference": (
        "conformance",
        "logits against LLaDA's public code, float32, largest difference",
        1e-5,
    ),
    "bf16_error_over_plain": ("conformance", "error of bf16 logits over that of plain attention", 1.1),
    "gradient_padded_float32": ("gradients", "gradient in float32, padded rows, relative difference", 1e-5),
    "gradient_packed_float32": ("gradients", "the same, packed", 1e-5),
    "gradient_chosen_bf16_over_plain": (
        "gradients",
        "error of bf16 gradients, chosen kernel, over plain attention's",
        1.1,
    ),
    "nan_gradients": ("gradients", "gradients that are no numbers", 0.0),
    "far_scores_nan": ("far_scores", "the same where all scores are near -150", 0.0),
    "packed_difference_float32": ("packed_is_alone", "documents in a pack against alone, float32", 1e-5),
    "packed_difference_bf16": ("packed_is_alone", "the same in bf16", 2e-2),
    "block_difference_bf16": ("blocks", "block attention and its gradients in bf16 against the CPU's float64", 2e-2),
    "experts_difference_bf16": ("blocks", "the same of a mixture of experts", 2e-2),
    "waits": ("sync", "waits of the host for the device in a micro-batch, every objective but GIFT", 0.0),
    "waits_gift": ("sync", "the same under GIFT", 1.0),
    "head_score_error": ("bf16_head", "log p of bf16 rows against float64, largest difference", 1e-3),
    "head_gradient_error": ("bf16_head", "their gradients, relative difference", 1e-2),
    "zero2_loss_difference": ("stages", "losses of three steps, ZeRO-2 against ZeRO-3 on the CPU, float32", 1e-4),
    "zero3_loss_difference": ("stages", "the same, ZeRO-3", 1e-4),
    "resume_loss_difference": ("resume", "losses after a stop and a resume against none", 1e-5),
}
"""Figures that say whether it is right: their part, their meaning, and the most that they may be."""
SETTINGS = {
    "lora_8b": ("LLaDA-8B, LoRA r 128, 4,096 tokens", ("vanilla", "exact", "table")),
    "lora_8b_checkpointed": ("the same, layers recomputed", ("vanilla", "exact", "table")),
    "full_1b": ("1.1 B, all weights, layers recomputed", ("vanilla", "exact")),
    "short": ("LLaDA-8B, LoRA, GSM8K's lengths, exact LIFT-3, recomputed", ("packed", "padded")),
}
BEST = ("lora_8b", "lora_8b_checkpointed")
"""Settings of the goals: without recomputation, or with it where that does not fit."""


def flat(machine: dict[str, Any], found: Found) -> Figures:
    """The figures of all parts, `part/name`, and under short names those that goals are stated for."""
    figures: Figures = {key: machine[key] for key in MACHINE}
    measured = {
        f"{part}/{name}": value if math.isfinite(value) else None
        for part, result in found.items()
        for name, value in result.get("figures", {}).items()
    }
    best = next((part for part in BEST if "figures" in found.get(part, {})), BEST[0])
    for name in ("vanilla_tokens_per_second", "vanilla_mfu", "exact_over_vanilla", "table_over_vanilla"):
        figures[name] = measured.get(f"{best}/{name}")
    figures["peak_gib"] = measured.get(f"{best}/vanilla_peak_gib")
    short, long = measured.get("short/packed_tokens_per_second"), measured.get(f"{BEST[1]}/exact_tokens_per_second")
    figures["short_over_long"] = short / long if short and long else None
    bad = [measured.get("gradients/nan_gradients"), measured.get("far_scores/far_scores_nan")]
    figures["nan_gradients"] = None if None in bad else sum(value for value in bad if value is not None)
    figures |= measured
    figures |= {f"{part}/notes": "\n".join(result["notes"]) for part, result in found.items() if result.get("notes")}
    return figures | {f"{part}/failed": result["failed"] for part, result in found.items() if "failed" in result}


def render(figures: Figures) -> str:
    """The page; without figures, one that says what is not measured."""
    if not figures:
        lines = ["*Not measured yet: no GPU was at hand.* On a machine with one, this fills the tables in ten minutes:"]
        lines += ["", f"    {COMMAND}"]
    else:
        measured = (
            f"*Measured at `{figures['commit']}`, {figures['date']}, on {figures['device']}, torch {figures['torch']}:*"
        )
        lines = ["**Small shapes, a smoke test: nothing here may be quoted.**", ""] * bool(figures["quick"])
        lines += [f"{measured} `{COMMAND}`"]
    notes = figures.get("kernels/notes")
    failed = {name.removesuffix("/failed"): reason for name, reason in figures.items() if name.endswith("/failed")}
    page = [
        "# On one GPU",
        "",
        *lines,
        "",
        "## Is it right",
        "",
        *table(("what", "found", "allowed"), right_rows(figures)),
        "",
        "## How fast",
        "",
        "Useful tokens (padding not counted) over whole steps; MFU is what the update needs of arithmetic over the",
        "device's dense bf16 peak; neither recomputation nor the scoring pass counts as needed.",
        "",
        *table(("setting", "objective", "tokens/s", "MFU", "time / first", "scoring", "peak GiB"), speed_rows(figures)),
    ]
    if notes:
        page += ["", "## The ten kernels that take longest", "", *(f"    {line}" for line in notes.splitlines())]
    if failed:
        page += ["", "## What failed", "", *(f"- `{name}`: {reason}" for name, reason in failed.items())]
    return "\n".join(page) + "\n"


def right_rows(figures: Figures) -> Iterable[tuple[str, ...]]:
    """What was compared, the figure, and whether it is allowed."""
    for name, (part, meaning, most) in RIGHT.items():
        value = figures.get(f"{part}/{name}")
        shown = MISSING if value is None else f"{value:.3g}" + ("" if value <= most else " **too much**")
        yield meaning, shown, f"{most:g}"


def speed_rows(figures: Figures) -> Iterable[tuple[str, ...]]:
    """Each setting and objective with its speed."""
    formats = {"tokens_per_second": "{:,.0f}", "mfu": "{:.1%}", "scoring_share": "{:.1%}", "peak_gib": "{:.1f}"}
    for part, (meaning, names) in SETTINGS.items():
        first = figures.get(f"{part}/{names[0]}_tokens_per_second")
        for name in names:
            values = {key: figures.get(f"{part}/{name}_{key}") for key in formats}
            shown = {key: MISSING if value is None else formats[key].format(value) for key, value in values.items()}
            tokens = values["tokens_per_second"]
            ratio = MISSING if tokens is None or first is None else f"{first / tokens:.2f}"
            yield (
                meaning,
                name,
                shown["tokens_per_second"],
                shown["mfu"],
                ratio,
                shown["scoring_share"],
                shown["peak_gib"],
            )


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    """Lines of a table in Markdown."""
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def published() -> str:
    """The page of the figures that are kept in `docs/results`."""
    path = RESULTS / "gpu.json"
    return render(json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {})


if __name__ == "__main__":
    (RESULTS / "gpu.md").write_text(published(), encoding="utf-8")
