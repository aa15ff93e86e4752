"""Memory and time of the loss: the chunked head against the logits of all positions, through `sft_loss`.

    python benchmarks/loss_memory.py --json loss_memory.json

The model is an embedding, a norm and the head, so that the loss is all there is to measure; 8 x 512 positions,
D = 1024, V = 126,464, float32. The baseline is what the public code does: logits of all positions, cross-entropy of the
masked ones. Time: forward and backward, medians of interleaved pairs. Memory: the peak beyond model and gradients, each
variant in a process of its own. `--quick` is a smoke test and never quoted.

On a GPU where liger-kernel is installed, its fused head is compared too (`--variants full chunked fused`): first its
gradients with autograd's, for weights of single tokens, which some of its releases get wrong; then its time and memory.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

import lift_ds
from lift_ds.models.llada import LLaDAConfig, LLaDAModelLM

LEVELS = (0.2, 0.5, 0.8)
HEADS = ("trained", "frozen")
LARGEST_ERROR = 1e-3
Loss = Callable[[LLaDAModelLM, Tensor, Tensor, Tensor], Tensor]


def chunked_loss(model: LLaDAModelLM, clean_ids: Tensor, kept: Tensor, t: Tensor) -> Tensor:
    """What lift_ds computes."""
    return lift_ds.sft_loss(model, clean_ids, kept, t, num_targets=clean_ids.numel())


def full_loss(model: LLaDAModelLM, clean_ids: Tensor, kept: Tensor, t: Tensor) -> Tensor:
    """The same with the logits of all positions."""
    logits = model(input_ids=clean_ids.masked_fill(kept, model.config.mask_token_id)).logits
    nll = F.cross_entropy(logits[kept], clean_ids[kept], reduction="none")
    return (nll / t[:, None].expand_as(clean_ids)[kept]).sum() / clean_ids.numel()


def fused_loss(model: LLaDAModelLM, clean_ids: Tensor, kept: Tensor, t: Tensor) -> Tensor:
    """The masked rows through liger-kernel's fused head and loss."""
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    rows = model.encode(clean_ids.masked_fill(kept, model.config.mask_token_id))[kept]
    matrix = model.model.transformer["ff_out"].weight
    nll = LigerFusedLinearCrossEntropyLoss(reduction="none")(matrix, rows, clean_ids[kept])
    return (nll / t[:, None].expand_as(clean_ids)[kept]).sum() / clean_ids.numel()


LOSSES: dict[str, Loss] = {"chunked": chunked_loss, "full": full_loss, "fused": fused_loss}


class Setting:
    """A model and a batch."""

    def __init__(self, is_quick: bool, is_frozen: bool) -> None:
        """Creates both, with gradients in place, on the GPU where there is one."""
        torch.manual_seed(0)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        width, vocabulary, self.batch, self.length = (64, 8192, 2, 256) if is_quick else (1024, 126_464, 8, 512)
        config = LLaDAConfig(
            d_model=width, n_layers=0, n_heads=8, vocab_size=vocabulary, mask_token_id=0, eos_token_id=1, pad_token_id=1
        )
        with self.device:
            self.model = LLaDAModelLM(config)
            self.clean_ids = torch.randint(2, vocabulary, (self.batch, self.length))
            self.uniform = torch.rand(self.batch, self.length)
        self.model.model.transformer["ff_out"].requires_grad_(not is_frozen)
        for parameter in self.model.parameters():
            parameter.grad = torch.empty_like(parameter).fill_(0.0) if parameter.requires_grad else None

    def step(self, variant: str, level: float, spread: float = 0.0) -> float:
        """One forward and backward at levels within `spread` of one; its seconds."""
        t = level + spread * torch.linspace(-1, 1, self.batch, device=self.device)
        self.synchronize()
        began = time.perf_counter()
        LOSSES[variant](self.model, self.clean_ids, self.uniform < t[:, None], t).backward()
        self.synchronize()
        return time.perf_counter() - began

    def largest_gradient_error(self, variant: str) -> float:
        """Largest difference of any gradient from that of the baseline, over that gradient's largest entry."""
        gradients = []
        for name in ("full", variant):
            self.model.zero_grad(set_to_none=False)
            self.step(name, 0.5, spread=0.4)
            gradients.append([p.grad.clone() for p in self.model.parameters() if p.grad is not None])
        return max(float((ours - base).abs().max() / base.abs().max()) for base, ours in zip(*gradients, strict=True))

    def synchronize(self) -> None:
        """Waits for the GPU."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def peak_bytes(self, variant: str, level: float) -> int:
        """Largest memory of a step, beyond what was there before."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            self.step(variant, level)
            return torch.cuda.max_memory_allocated() - before
        before = memory_bytes("VmRSS")
        self.step(variant, level)
        return memory_bytes("VmHWM") - before


def memory_bytes(field: str) -> int:
    """Memory of this process: `VmRSS` now, `VmHWM` at its peak (`ru_maxrss` may be its parent's)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) * 1024


def peak_in_own_process(variant: str, level: float, head: str, is_quick: bool) -> float:
    """`peak_bytes` of a fresh process, in MiB."""
    command = [sys.executable, __file__, "--probe", variant, str(level), head, *(["--quick"] if is_quick else [])]
    return int(subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout) / 2**20


def measure_head(head: str, variants: list[str], pairs: int, is_quick: bool) -> dict[str, float]:
    """Time and memory of every variant with one kind of head: prints a line a level, returns the figures."""
    figures: dict[str, float] = {}
    setting = Setting(is_quick, head == "frozen")
    for variant in variants[1:]:
        figures[f"{variant}_gradient_error_{head}"] = error = setting.largest_gradient_error(variant)
        if error > LARGEST_ERROR:
            sys.exit(f"{variant}, head {head}: gradients differ from autograd's by {error:.1e}; not timed.")
    for level in LEVELS:
        rounds = [{variant: setting.step(variant, level) for variant in variants} for _ in range(1 + pairs)]
        seconds = {variant: statistics.median(round_[variant] for round_ in rounds[1:]) for variant in variants}
        memory = {variant: peak_in_own_process(variant, level, head, is_quick) for variant in variants}
        line = f"{head:10}{level:>5}" + "".join(
            f"{seconds[variant]:>13.2f}{memory[variant]:>13,.0f}" for variant in variants
        )
        for variant in variants[1:]:
            time_ratio, memory_ratio = (values[variant] / values["full"] for values in (seconds, memory))
            name = f"{head}_t{round(level * 100)}"
            figures |= {f"{variant}_time_ratio_{name}": time_ratio, f"{variant}_peak_memory_ratio_{name}": memory_ratio}
            line += f"   {time_ratio:.2f}, {memory_ratio:.2f}"
        print(line, flush=True)
    return figures


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--pairs", type=int, default=5, help="interleaved rounds for each level, after one that warms up"
    )
    parser.add_argument("--variants", nargs="+", choices=["chunked", "fused"], default=["chunked"], help="beside full")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--quick", action="store_true", help="a smoke test with small shapes")
    parser.add_argument("--probe", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.probe:
        variant, level, head = arguments.probe
        print(Setting(arguments.quick, head == "frozen").peak_bytes(variant, float(level)))
        return
    variants = ["full", *arguments.variants]
    names = [f"{variant} {unit}" for variant in variants for unit in ("s", "MiB")]
    print(f"{'head':10}{'t':>5}" + "".join(f"{name:>13}" for name in names) + "   ratios to full: time, memory")
    measured: dict[str, float] = {}
    for head in HEADS:
        measured |= measure_head(head, variants, arguments.pairs, arguments.quick)
    largest = {
        f"time_ratio_t{round(level * 100)}": max(
            measured[f"{arguments.variants[0]}_time_ratio_{head}_t{round(level * 100)}"] for head in HEADS
        )
        for level in LEVELS
    }
    memory = [measured[name] for name in measured if name.startswith(f"{arguments.variants[0]}_peak_memory_ratio")]
    figures = {"quick": arguments.quick, "peak_memory_ratio_max": max(memory)} | largest | measured
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
