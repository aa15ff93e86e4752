"""What the parts found, as flat figures and as a page of tables."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

Found = dict[str, dict[str, Any]]
MISSING = "not measured"
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


def figure(found: Found, part: str, name: str) -> float | None:
    """A figure of a part, if it was measured."""
    value = found.get(part, {}).get("figures", {}).get(name)
    return None if value is None or not math.isfinite(value) else float(value)


def flat(machine: dict[str, Any], found: Found) -> dict[str, Any]:
    """The figures of all parts, `part/name`, and under short names those that goals are stated for."""
    figures: dict[str, Any] = {key: machine[key] for key in ("device", "torch", "commit", "quick", "date")}
    best = next((part for part in BEST if "figures" in found.get(part, {})), BEST[0])
    figures["vanilla_tokens_per_second"] = figure(found, best, "vanilla_tokens_per_second")
    figures["vanilla_mfu"] = figure(found, best, "vanilla_mfu")
    figures["exact_over_vanilla"] = figure(found, best, "exact_over_vanilla")
    figures["table_over_vanilla"] = figure(found, best, "table_over_vanilla")
    figures["peak_gib"] = figure(found, best, "vanilla_peak_gib")
    short, long = figure(found, "short", "packed_tokens_per_second"), figure(found, BEST[1], "exact_tokens_per_second")
    figures["short_over_long"] = short / long if short and long else None
    bad = [figure(found, *of) for of in (("gradients", "nan_gradients"), ("far_scores", "far_scores_nan"))]
    figures["nan_gradients"] = None if None in bad else sum(value for value in bad if value is not None)
    for part, result in found.items():
        for name, value in result.get("figures", {}).items():
            figures[f"{part}/{name}"] = value if math.isfinite(value) else None
    return figures


def render(machine: dict[str, Any], found: Found) -> str:
    """The page."""
    lines = ["# On one GPU", ""]
    if machine["quick"]:
        lines += ["**Small shapes, a smoke test: nothing here may be quoted.**", ""]
    command = "python benchmarks/gpu/run.py --out docs/results/gpu_run"
    lines += [
        f"*Measured at `{machine['commit']}`, {machine['date']}, on {machine['device']}, torch {machine['torch']}:*"
        f" `{command}`",
        "",
        "## Is it right",
        "",
        *table(("what", "found", "allowed"), right_rows(found)),
        "",
        "## How fast",
        "",
        "Useful tokens (padding not counted) over whole steps; MFU is what the update needs of arithmetic over the "
        "device's dense bf16 peak; neither recomputation nor the scoring pass counts as needed.",
        "",
        *table(("setting", "objective", "tokens/s", "MFU", "time / first", "scoring", "peak GiB"), speed_rows(found)),
        "",
    ]
    notes = found.get("kernels", {}).get("notes")
    if notes:
        lines += ["## The ten kernels that take longest", "", "    " + "\n    ".join(notes), ""]
    failed = {name: result["failed"] for name, result in found.items() if "failed" in result}
    if failed:
        lines += ["## What failed", "", *(f"- `{name}`: {reason}" for name, reason in failed.items()), ""]
    return "\n".join(lines)


def right_rows(found: Found) -> Iterable[tuple[str, ...]]:
    """What was compared, the figure, and whether it is allowed."""
    for name, (part, meaning, most) in RIGHT.items():
        value = figure(found, part, name)
        shown = MISSING if value is None else f"{value:.3g}" + ("" if value <= most else " **too much**")
        yield meaning, shown, f"{most:g}"


def speed_rows(found: Found) -> Iterable[tuple[str, ...]]:
    """Each setting and objective with its speed."""
    for part, (meaning, names) in SETTINGS.items():
        first = figure(found, part, f"{names[0]}_tokens_per_second")
        for name in names:
            tokens = figure(found, part, f"{name}_tokens_per_second")
            mfu, scoring = figure(found, part, f"{name}_mfu"), figure(found, part, f"{name}_scoring_share")
            peak = figure(found, part, f"{name}_peak_gib")
            yield (
                meaning,
                name,
                MISSING if tokens is None else f"{tokens:,.0f}",
                MISSING if mfu is None else f"{mfu:.1%}",
                MISSING if tokens is None or first is None else f"{first / tokens:.2f}",
                MISSING if scoring is None else f"{scoring:.1%}",
                MISSING if peak is None else f"{peak:.1f}",
            )


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    """Lines of a table in Markdown."""
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]
