"""The learning rate of each optimizer step."""

from __future__ import annotations

import math

from lift_ds.config.training import OptimConfig


def learning_rate(step: int, optim: OptimConfig) -> float:
    """The rate of optimizer step `step` (from 0): warm-up, then a schedule whose last step is short of its end."""
    warmup_steps = round(optim.warmup_ratio * optim.steps)
    if step < warmup_steps:
        return optim.lr * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(optim.steps - warmup_steps, 1)
    course = {
        "constant": 1.0,
        "linear": 1.0 - progress,
        "cosine": 0.5 + 0.5 * math.cos(math.pi * progress),
    }[optim.schedule]
    return optim.lr * (optim.min_lr_ratio + (1 - optim.min_lr_ratio) * course)
