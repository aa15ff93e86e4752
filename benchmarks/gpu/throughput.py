"""How fast training is on one device: each function is one part, and returns figures.

Useful tokens are those of documents, padding not counted. MFU is what the update needs of arithmetic (see
`lift_ds/planning/flops.py`: neither recomputation nor the scoring pass counts) over the seconds of whole steps and the
device's dense bf16 peak.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile
from whole_steps import SEED, DeviceWeights, WholeSteps, draw_documents

from lift_ds.data.batch import Document
from lift_ds.models.llada import LLaDAConfig
from lift_ds.models.settings import LoraConfig
from lift_ds.objectives import objective_settings
from lift_ds.objectives.settings import ObjectiveSettings
from lift_ds.planning.flops import Arithmetic, peak_flops
from lift_ds.ranks.launch import read_launch
from lift_ds.training.engine import start_distributed

REPOSITORY = Path(__file__).resolve().parents[2]
ENGINE_JSON = REPOSITORY / "ds_configs" / "zero2.json"
LORA = LoraConfig(rank=128, alpha=256.0, dropout=0.05)
OBJECTIVES = {
    "vanilla": objective_settings(method="vanilla"),
    "exact": objective_settings(method="lift3"),
    "table": objective_settings(method="lift3", scoring="buffer", refresh_share=0.125, warm_start_steps=0),
}
WARM_UP = 2
PROMPT_SHARE = 0.25
SHORT_MEAN, SHORT_CV = 220.0, 0.55  # tokens of a GSM8K row with its chat template, and their spread
GIB = 1 << 30


@dataclass(frozen=True)
class Sizes:
    """What is measured.

    Args:
        config: The model.
        length: Tokens of a long document, and of a pack.
        rounds: Steps of each objective, after those that warm up.
    """

    config: LLaDAConfig
    length: int
    rounds: int


def llada_8b(is_quick: bool) -> Sizes:
    """LLaDA-8B's own config, or one that a CPU trains in seconds."""
    if is_quick:
        return Sizes(small_config(2), 96, 2)
    return Sizes(LLaDAConfig(), 4096, 6)


def one_billion(is_quick: bool) -> Sizes:
    """1.1 B parameters in LLaDA's layout."""
    if is_quick:
        return Sizes(small_config(1), 96, 2)
    return Sizes(LLaDAConfig(d_model=2048, n_layers=16, n_heads=16, mlp_hidden_size=5632), 4096, 6)


def small_config(num_layers: int) -> LLaDAConfig:
    """Small widths."""
    return LLaDAConfig(
        d_model=64, n_layers=num_layers, n_heads=4, mlp_hidden_size=192, vocab_size=512, max_sequence_length=256,
        mask_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip


class Meter:
    """Steps of one model, and what they amount to.

    Args:
        device: What computes.
        sizes: What is measured.
        documents: Most documents of a step.
        lora: Adapters, if any.
        checkpointed: Share of the layers that are computed again in backward.
        is_packed: Whether the documents of a step go through the model without padding.
    """

    def __init__(
        self, device: torch.device, sizes: Sizes, documents: int, lora: LoraConfig | None, checkpointed: float,
        is_packed: bool,
    ) -> None:  # fmt: skip
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        self.device, self.sizes = device, sizes
        weights = DeviceWeights(sizes.config)
        self.steps = WholeSteps(
            sizes.config, weights, ENGINE_JSON, OBJECTIVES["vanilla"], documents, lora=lora,
            num_checkpointed=round(checkpointed * sizes.config.num_hidden_layers), is_packed=is_packed,
            has_bf16=device.type == "cuda",
        )  # fmt: skip
        targets = tuple(lora.targets) if lora else ()
        self.arithmetic = Arithmetic.of(sizes.config, lora.rank if lora else 0, targets)
        self.number = 0

    def wait(self) -> None:
        """Returns when the device is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def run(self, objective: ObjectiveSettings, batches: list[list[Document]]) -> dict[str, float]:
        """Warms up, then takes one step for each list of documents: tokens a second, MFU, scoring's share, peak GiB."""
        self.steps.learn(objective)
        for documents in [*batches[:WARM_UP], *batches]:
            self.steps.step(documents, self.number, self.wait)
            self.number += 1
        seconds = self.steps.seconds[WARM_UP:]
        scoring = self.steps.scoring_seconds[WARM_UP:]
        lengths = np.array([len(document.ids) for documents in batches for document in documents])
        rows = [document.response_mask.sum() / 2 for documents in batches for document in documents]  # E[t] = 1/2
        needed = sum(self.arithmetic.training(*pair) for pair in zip(lengths, rows, strict=True))
        peak = peak_flops(torch.cuda.get_device_name(self.device)) if self.device.type == "cuda" else None
        figures = {
            "tokens_per_second": float(lengths.sum() / sum(seconds)),
            "seconds_a_step": statistics.mean(seconds),
            "scoring_share": sum(scoring) / sum(seconds),
        }
        if peak:
            figures["mfu"] = needed / sum(seconds) / peak
        if self.device.type == "cuda":
            figures["peak_gib"] = torch.cuda.max_memory_allocated() / GIB
        return figures

    def close(self) -> None:
        """Lets go of the model."""
        del self.steps


def long_documents(sizes: Sizes, rounds: int) -> list[list[Document]]:
    """One document of full length a step."""
    vocab_size = int(sizes.config.vocab_size)
    return [draw_documents([sizes.length], PROMPT_SHARE, vocab_size, (1, number)) for number in range(rounds)]


def short_documents(sizes: Sizes, rounds: int) -> list[list[Document]]:
    """Documents with GSM8K's lengths (log-normal), as many a step as fill a pack of full length."""
    scale = sizes.length / 4096
    sigma = float(np.sqrt(np.log1p(SHORT_CV**2)))
    drawn = np.random.default_rng(SEED).lognormal(np.log(SHORT_MEAN * scale) - sigma**2 / 2, sigma, 64 * rounds)
    lengths = iter(np.clip(drawn, 8, sizes.length // 2).astype(int).tolist())
    batches = []
    for number in range(rounds):
        chosen = [next(lengths)]
        while sum(chosen) + (following := next(lengths)) <= sizes.length:
            chosen.append(following)
        batches.append(draw_documents(chosen, PROMPT_SHARE, int(sizes.config.vocab_size), (2, number)))
    return batches


def start(device: torch.device) -> None:
    """Joins a process group of one."""
    launch = read_launch()
    start_distributed(launch)


def lora_8b(device: torch.device, is_quick: bool, checkpointed: float, note: Callable[[str], None]) -> dict[str, float]:
    """LLaDA-8B with adapters, one document of 4,096 tokens a step: vanilla, exact LIFT-3, LIFT-3 from the table."""
    sizes = llada_8b(is_quick)
    meter = Meter(device, sizes, 1, LORA, checkpointed, is_packed=True)
    batches = long_documents(sizes, sizes.rounds)
    figures: dict[str, float] = {}
    for name, objective in OBJECTIVES.items():
        found = meter.run(objective, batches)
        figures |= {f"{name}_{key}": value for key, value in found.items()}
    for name in ("exact", "table"):
        figures[f"{name}_over_vanilla"] = figures[f"{name}_seconds_a_step"] / figures["vanilla_seconds_a_step"]
    note(f"attention: {meter.steps.engine.root.kernel}")
    return figures


def full_1b(device: torch.device, is_quick: bool, checkpointed: float, note: Callable[[str], None]) -> dict[str, float]:
    """A full fine-tune of a model of 1.1 B parameters, one document of 4,096 tokens a step."""
    sizes = one_billion(is_quick)
    meter = Meter(device, sizes, 1, None, checkpointed, is_packed=True)
    batches = long_documents(sizes, sizes.rounds)
    figures: dict[str, float] = {}
    for name in ("vanilla", "exact"):
        figures |= {f"{name}_{key}": value for key, value in meter.run(OBJECTIVES[name], batches).items()}
    return figures


def short(device: torch.device, is_quick: bool, checkpointed: float, note: Callable[[str], None]) -> dict[str, float]:
    """Short documents through LLaDA-8B with adapters, packed and in padded rows."""
    sizes = llada_8b(is_quick)
    batches = short_documents(sizes, sizes.rounds)
    most = max(len(documents) for documents in batches)
    meter = Meter(device, sizes, most, LORA, checkpointed, is_packed=True)
    figures = {f"packed_{key}": value for key, value in meter.run(OBJECTIVES["exact"], batches).items()}
    meter.steps.engine.root.is_packed = False
    figures |= {f"padded_{key}": value for key, value in meter.run(OBJECTIVES["exact"], batches).items()}
    figures["packed_over_padded"] = figures["packed_tokens_per_second"] / figures["padded_tokens_per_second"]
    return figures


def kernels(device: torch.device, is_quick: bool, checkpointed: float, note: Callable[[str], None]) -> dict[str, float]:
    """A profile of two steps of exact LIFT-3 in the setting of `lora_8b`: the ten kernels that take longest."""
    sizes = llada_8b(is_quick)
    meter = Meter(device, sizes, 1, LORA, checkpointed, is_packed=True)
    batches = long_documents(sizes, 2)
    meter.run(OBJECTIVES["exact"], batches)
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    with profile(activities=activities) as profiled:
        for documents in batches:
            meter.steps.step(documents, meter.number, meter.wait)
            meter.number += 1
    order = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    found = [event for event in profiled.key_averages() if not event.is_user_annotation]  # not a step's parts
    spent = {event.key: float(getattr(event, order)) for event in found}
    total = sum(spent.values())
    longest = sorted(spent, key=lambda name: -spent[name])[:10]
    for name in longest:
        note(f"{spent[name] / total:6.1%}  {name[:110]}")
    return {"top_ten_share": sum(spent[name] for name in longest) / total, "kernel_seconds_a_step": total / 2e6}


PARTS = {
    "lora_8b": (lora_8b, 0.0),
    "lora_8b_checkpointed": (lora_8b, 1.0),
    "short": (short, 1.0),
    "full_1b": (full_1b, 1.0),
    "kernels": (kernels, 1.0),
}
"""Each with the share of the layers that are computed again in backward."""
