"""What surrounds a pass of the model: no dropout, another type, a stopwatch; and whether the model draws numbers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import nn
from torch.profiler import record_function


def scoring_autocast(device: torch.device, in_bf16: bool) -> torch.autocast:
    """The types of a scoring pass: bf16, or what the caller has.

    No cache: it would keep a copy of every weight, also after ZeRO-3 let go of the weight.
    """
    dtype = torch.bfloat16 if in_bf16 else torch.get_autocast_dtype(device.type)
    return torch.autocast(device.type, dtype, in_bf16 or torch.is_autocast_enabled(device.type), cache_enabled=False)


@contextmanager
def without_dropout(root: nn.Module) -> Iterator[None]:
    """All modules in eval mode for the while; each goes back to its own mode."""
    training = [module for module in root.modules() if module.training]
    root.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def has_own_dropout(root: nn.Module) -> bool:
    """Whether a dropout module other than the adapters', or a dropout field of a config, is above 0."""
    for module in root.modules():
        if isinstance(module, nn.Dropout) and module.p > 0:
            return True
        config = getattr(module, "config", None)
        if any(getattr(config, f"{part}_dropout", 0) for part in ("attention", "residual", "embedding")):
            return True
    return False


_ANY_PASS = (
    "What makes room: a smaller data.micro_batch_tokens, or train_micro_batch_size_per_gpu where that is a number (the "
    "steps stay the same), model.checkpoint_layers (all of them: model.gradient_checkpointing=true), a shorter "
    "data.max_length"
)
_PLAN = "`python tools/plan.py` says what each takes."
MAKES_ROOM = {
    "data": f"What makes room: more GPUs, ZeRO-3, adapters (lora.rank). {_PLAN}",
    "scoring": f"{_ANY_PASS}; or objective.scoring=buffer, which scores few documents. {_PLAN}",
    "forward": f"{_ANY_PASS}. {_PLAN}",
    "backward": f"{_ANY_PASS}. {_PLAN}",
    "optimizer": "What makes room: ZeRO-3 or more GPUs, adapters (lora.rank), "
    f"zero_optimization.offload_optimizer.device=cpu in the JSON. {_PLAN}",
}
"""By part of a step that has a clock."""


@contextmanager
def timed(device: torch.device, name: str) -> Iterator[Callable[[], float]]:
    """Times its block on the device that computes; what it yields tells the seconds once the device has finished it.

    A profile that runs has the block by its name; without one a label would cost more than the rest. Where memory runs
    out inside, the error says in which block, the innermost, as its `part` too, and what makes room.
    """
    with record_function(name) if torch.autograd._profiler_enabled() else nullcontext(), stopwatch(device) as seconds:
        try:
            yield seconds
        except torch.OutOfMemoryError as error:
            if "part" not in vars(error):
                vars(error)["part"] = name
                error.add_note(f"lift_ds: memory ran out in the part {name!r} of a step. {MAKES_ROOM[name]}")
            raise


@contextmanager
def stopwatch(device: torch.device) -> Iterator[Callable[[], float]]:
    """`timed` without a name, for what lies inside one that has it."""
    if device.type != "cuda":
        times = [time.perf_counter()]
        yield lambda: times[1] - times[0]
        times.append(time.perf_counter())
        return
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # nothing waits for them
    begin.record(torch.cuda.current_stream(device))
    yield lambda: float(begin.elapsed_time(end)) / 1000
    end.record(torch.cuda.current_stream(device))
