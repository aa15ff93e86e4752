"""What block attention and mixtures of experts compute on a device, against the CPU in float64."""

from __future__ import annotations

import torch
from correctness import SEED, difference
from torch import Tensor

from lift_ds.models.blocks import BlockAttention
from lift_ds.models.elementwise import EAGER
from lift_ds.models.experts import Experts

NUM_CHOSEN = 4


def blocks(device: torch.device, is_quick: bool) -> dict[str, float]:
    """Largest relative differences of outputs and gradients in bf16: FlexAttention's, and the grouped product's."""
    return {"block_difference_bf16": of_attention(device, is_quick), "experts_difference_bf16": of_experts(device)}


def of_attention(device: torch.device, is_quick: bool) -> float:
    """Three documents in one row, noised and clean, heads of width 64 in groups of two."""
    lengths = [40, 9, 33] if is_quick else [700, 129, 512]
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    torch.manual_seed(SEED)
    heads = [torch.randn(1, count, 2 * sum(lengths), 64).bfloat16() for count in (4, 2, 2)]

    def gradients(where: torch.device, dtype: torch.dtype) -> Tensor:
        leaves = query, key, value = [each.to(where, dtype).requires_grad_() for each in heads]
        out = BlockAttention.training(positions.to(where), 32)(query, key, value, 0.0)
        found = torch.autograd.grad(out.double().square().sum(), leaves)
        return torch.cat([each.double().cpu().flatten() for each in (out, *found)])

    return difference(gradients(device, torch.bfloat16), gradients(torch.device("cpu"), torch.float64))


def of_experts(device: torch.device) -> float:
    """Eight experts, one of which no token goes to."""
    torch.manual_seed(SEED)
    bank = Experts(8, 256, 128).bfloat16()
    tokens = torch.randn(333, 256).bfloat16()
    chosen = torch.rand(333, 7).argsort(-1)[:, :NUM_CHOSEN]
    weights = torch.rand(333, NUM_CHOSEN)

    def gradients(where: torch.device, dtype: torch.dtype) -> Tensor:
        leaf = tokens.to(where, dtype).requires_grad_()
        out = bank.to(where, dtype)(leaf, chosen.to(where), weights.to(where), EAGER.gate)
        found = torch.autograd.grad(out.double().square().sum(), [leaf, *bank.parameters()])
        return torch.cat([each.double().cpu().flatten() for each in (out, *found)])

    return difference(gradients(device, torch.bfloat16), gradients(torch.device("cpu"), torch.float64))
