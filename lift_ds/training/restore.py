"""A checkpoint's numbers into a running engine, whatever world size and ZeRO stage wrote them.

Every parameter is found by name, and each rank reads exactly its own ranges of the float32 weights and of the
optimizer's moments, straight into the tensors where the engine keeps them. So the flat groups are cut anew without ever
being put together, and nothing of a checkpoint is unpickled but plain numbers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lift_ds.storage.flat_groups import FlatTensor, Range, zero2_ranges, zero3_ranges
from lift_ds.storage.stored_tensor import blocks
from lift_ds.storage.zero_checkpoint import FULL_STAGE, MASTER, MOMENTS, ZeroCheckpoint, optimizer_step

from .engine import Engine


def restore_engine(engine: Engine, zero: ZeroCheckpoint) -> None:
    """Fills weights, optimizer state, frozen parameters and buffers of a new engine, and sets its counters.

    Raises:
        ValueError: A parameter is not in the checkpoint, or has another shape.
    """
    optimizer = engine.ds.optimizer
    if engine.stage == FULL_STAGE:
        optimizer.checkpoint_event_prologue()
    _fill_frozen(engine, zero.frozen)
    for name, buffer in engine.root.named_buffers():
        if name in zero.buffers:
            buffer.copy_(zero.buffers[name].load())
    state = optimizer.state_dict()  # its tensors are the engine's own
    _fill_groups(engine, state, zero)
    ranks: list[Any] = [None] * engine.world_size
    ranks[engine.rank] = state
    optimizer.load_state_dict(ranks, load_from_fp32_weights=True)
    if engine.stage == FULL_STAGE:
        optimizer.checkpoint_event_epilogue()
    else:
        optimizer.update_lp_params()
    saved = zero.model_state
    engine.ds.global_steps = saved["global_steps"]
    engine.ds.skipped_steps = saved.get("skipped_steps", 0)
    engine.ds.global_samples = saved.get("global_samples", 0)


def _fill_groups(engine: Engine, state: dict[str, Any], zero: ZeroCheckpoint) -> None:
    is_full = engine.stage == FULL_STAGE
    masters = state["fp32_flat_groups" if is_full else "single_partition_of_fp32_groups"]
    moments = state["optimizer_state_dict" if is_full else "base_optimizer_state"]["state"]
    sources = {key: zero.trained(key) for key in (MASTER, *MOMENTS)}
    steps = set(optimizer_step(zero.optimizer_files[0]))
    if len(steps) != 1:
        raise ValueError(
            f"{zero.folder}: the optimizer's groups have taken {sorted(steps)} steps; one number is needed."
        )
    step = steps.pop()
    adam = engine.ds.optimizer.optimizer
    counts_in_tensors = isinstance(adam, torch.optim.AdamW)
    for number, (shapes, master) in enumerate(zip(engine.ds._get_zero_param_shapes(), masters, strict=True)):
        for name, shape in shapes.items():
            saved = sources[MASTER].get(name)
            if saved is None or saved.shape != torch.Size(shape):
                found = "not trained" if saved is None else tuple(saved.shape)
                raise ValueError(f"{name} is {tuple(shape)} in this run and {found} in the checkpoint.")
        counter = torch.tensor(step, device=master.device) if counts_in_tensors else int(step)
        # under ZeRO-1 and 2 the saved weights of the last rank may lack the filling that its moments have
        own = getattr(engine.ds.optimizer, "single_partition_of_fp32_groups", masters)
        whole = master if is_full else own[number]
        moments[number] = {"step": counter, **{key: torch.zeros_like(whole.data) for key in MOMENTS}}
        if is_full:
            ranges = list(zero3_ranges(shapes, engine.world_size, engine.rank))
        else:
            paddings = state.get("param_alignment_paddings", {number: [0] * len(shapes)})[number]
            ranges = list(zero2_ranges(shapes, paddings, engine.world_size, engine.rank))
        _fill(master, ranges, sources[MASTER])
        for key in MOMENTS:
            _fill(moments[number][key], ranges, sources[key])


def _fill(target: Tensor, ranges: list[Range], sources: dict[str, FlatTensor]) -> None:
    for part in ranges:
        held = sum(each.stop - each.start for each in sources[part.name].within(part.start, part.stop))
        assert held == part.stop - part.start, f"{part.name}: {held} of {part.stop - part.start} elements were opened"
        for start, stop in blocks(part.start, part.stop):
            offset = part.offset + start - part.start
            target.data[offset : offset + stop - start].copy_(sources[part.name].read(start, stop))


def _fill_frozen(engine: Engine, frozen: dict[str, FlatTensor]) -> None:
    for name, parameter in engine.root.named_parameters():
        if name not in frozen:
            continue
        part, whole = getattr(parameter, "ds_tensor", None), frozen[name].num_elements
        start = 0 if part is None else min(part.numel() * engine.rank, whole)
        stop = whole if part is None else min(start + part.numel(), whole)
        target = parameter if part is None else part
        _fill(target.data.flatten(), [Range(name, start, stop, 0)], frozen)
