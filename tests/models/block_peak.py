"""Peak memory of block attention at 4,096 tokens, forward and backward of [noised ; clean]: prints MiB, and of what."""

from __future__ import annotations

import json
import resource
import time

import torch

from lift_ds.models.attention import attention_kernels
from lift_ds.models.blocks import BlockAttention

LENGTH, HEADS, WIDTH = 4096, 2, 32


def peak_mib() -> float:
    """Most memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def run(length: int) -> None:
    """One layer's attention of `length` tokens, noised and clean."""
    attention = BlockAttention.training(torch.arange(length)[None], 32)
    heads = [torch.randn(1, HEADS, 2 * length, WIDTH, requires_grad=True) for _ in range(3)]
    with attention_kernels("sdpa"):
        attention(*heads, 0.0).sum().backward()


if __name__ == "__main__":
    run(64)
    before, start = peak_mib(), time.monotonic()
    run(LENGTH)
    heads = 4 * HEADS * 2 * LENGTH * WIDTH / 2**20
    dense = 4 * (2 * LENGTH) ** 2 / 2**20
    taken, seconds = peak_mib() - before, time.monotonic() - start
    print(json.dumps({"peak_mib": taken, "heads_mib": heads, "dense_mask_mib": dense, "seconds": seconds}))
