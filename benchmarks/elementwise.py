"""Norm and rotation with backwards of their own, and on a GPU Liger's kernels, against autograd of the formulas.

    python benchmarks/elementwise.py --json elementwise.json

Forward and backward of one call: the norm of (4, L, 512), the rotation of queries and keys of 8 heads of width 64, the
gate of (4, L, 1,536); L = 256 and 1,024. Variants take turns; seconds are the process's on a CPU, the clock's on a GPU.
Ratios of medians to autograd's, below 1 where they are faster. `--quick` is a smoke test and never quoted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from lift_ds.models.elementwise import EAGER, Elementwise
from lift_ds.models.kernels import liger_kernels, why_no_liger
from lift_ds.models.layers import rotary_frequencies, rotary_tables

B, D, H = 4, 512, 8
EPS = 1e-5
WARMUP = 3
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def formula_norm(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The norm, by autograd."""
    wide = hidden.float()
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(hidden.dtype)


def formula_rotation(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """The rotation, by autograd."""

    def turn(heads: Tensor) -> Tensor:
        wide = heads.float()
        first, second = wide.chunk(2, dim=-1)
        return (wide * cos + torch.cat((-second, first), dim=-1) * sin).to(heads.dtype)

    return turn(query), turn(key)


def formula_gate(gates: Tensor, values: Tensor) -> Tensor:
    """The gate, by autograd."""
    return F.silu(gates) * values


def calls(functions: Elementwise, length: int, dtype: torch.dtype) -> dict[str, Callable[[], Any]]:
    """A forward and backward of each function."""

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, device=DEVICE, dtype=dtype)

    hidden, weight, gates, values = (
        drawn(*shape).requires_grad_() for shape in ((B, length, D), (D,), (B, length, 3 * D), (B, length, 3 * D))
    )
    gradient, wide_gradient = drawn(B, length, D), drawn(B, length, 3 * D)
    heads_gradient = drawn(B, length, H, D // H).transpose(1, 2)
    tables = rotary_tables(torch.arange(length, device=DEVICE)[None], rotary_frequencies(D // H, 1e4, DEVICE))

    def rotation() -> None:
        heads = [(hidden * 1).unflatten(-1, (H, -1)).transpose(1, 2) for _ in range(2)]  # kernels write into them
        torch.autograd.backward(functions.rotate(heads[0], heads[1], *tables), [heads_gradient, heads_gradient])

    return {
        "norm": lambda: functions.rms_norm(hidden, weight, EPS).backward(gradient),
        "rotation": rotation,
        "gate": lambda: functions.gate(gates * 1, values * 1).backward(wide_gradient),
    }


def seconds(call: Callable[[], Any]) -> float:
    """Of one call."""
    if DEVICE.type == "cpu":
        began = time.process_time()
        call()
        return time.process_time() - began
    torch.cuda.synchronize()
    began = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return time.perf_counter() - began


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60, help="calls of each variant, after those that warm up")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--quick", action="store_true", help="a smoke test")
    arguments = parser.parse_args()
    rounds = 2 if arguments.quick else arguments.rounds
    variants = {"autograd": Elementwise(formula_norm, formula_rotation, formula_gate), "eager": EAGER}
    if why_no_liger(DEVICE, is_compiled=False) is None:
        variants["liger"] = liger_kernels()
    figures: dict[str, float | bool] = {"quick": arguments.quick, "rounds": rounds}
    for dtype in (torch.float32, torch.bfloat16):
        for length in (256, 1024):
            made = {name: calls(functions, length, dtype) for name, functions in variants.items()}
            for kind in ("norm", "rotation", "gate"):
                times: dict[str, list[float]] = {name: [] for name in variants}
                for number in range(WARMUP + rounds):
                    for name in list(variants)[:: 1 if number % 2 else -1]:
                        times[name].append(seconds(made[name][kind]))
                median = {name: statistics.median(each[WARMUP:]) for name, each in times.items()}
                for name in list(variants)[1:]:
                    key = f"{kind}_{str(dtype).removeprefix('torch.')}_{length}_{name}_time_ratio"
                    figures[key] = median[name] / median["autograd"]
                    print(f"{key:50}{figures[key]:>8.2f}{median[name] * 1e3:>10.3f} ms")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
