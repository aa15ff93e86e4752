"""The largest micro-batch that may come, run before the first step, so that memory runs out there or not at all.

Every response token is masked, every document scored where the objective scores; losses have no weight, and nothing of
the run changes. What comes later and is not in it: the flat gradients and copies of an update, which do not depend on
the batch and which the first step shows; measurements, whose passes keep nothing for a backward; on the host, what an
offloaded optimizer allocates.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from lift_ds.data.batch import Document, MicroBatch, Noise, collate
from lift_ds.method.components import Component
from lift_ds.objectives import Objective
from lift_ds.planning.report import Plan

from .engine import Engine
from .timing import GIB, peak_memory

PLANNED_AS = {"scoring": "scoring pass", "forward": "training pass", "backward": "training pass", "optimizer": "update"}
"""What a plan calls the parts of a step."""


def document_lengths(num_packs: int, length: int, max_length: int) -> list[int]:
    """Tokens of each document of some packs of a length; more than `max_length` are several documents'."""
    whole, rest = divmod(length, max_length) if length > max_length else (1, 0)
    return num_packs * ([min(length, max_length)] * whole + [rest] * (rest > 0))


def worst_case(lengths: list[int], objective: Objective) -> MicroBatch:
    """Documents of these lengths, all of them response, for which `objective` does the most that it can.

    The last of several is a token short: documents of a run differ in length, and masks of padding take memory.
    """
    documents, noises = [], []
    if len(lengths) > 1:
        lengths = [*lengths[:-1], max(lengths[-1] - 1, 1)]
    for sample_id, length in enumerate(lengths):
        ids, everything = np.zeros(length, dtype=np.int64), np.ones(length, dtype=bool)
        documents.append(Document(ids, everything, ~everything, sample_id, epoch=0, where="warm-up"))
        uniforms = np.zeros((2, length), dtype=np.float32)  # below any level
        noises.append(Noise(t=1.0, rho=0.0, component=int(Component.EASY), uniforms=uniforms))  # an easy one is scored
    batch = collate(documents, noises, pad_token_id=0)
    if objective.reads_difficulty:
        batch = replace(batch, difficulty=torch.zeros_like(batch.mask_uniform))
    return batch


def warm_up(engine: Engine, objective: Objective, plan: Plan, max_length: int) -> tuple[dict[str, Any], str]:
    """Runs the largest micro-batch; all ranks call it.

    Args:
        engine: What trains.
        objective: What is learned.
        plan: How many documents or packs, how long they are, and what was planned for them.
        max_length: Most tokens of a document.

    Returns:
        What it took, as numbers and as a line.

    Raises:
        torch.OutOfMemoryError: With what was run, what was planned for it, and what makes room.
    """
    micro_batch, length = plan.num_documents, plan.setup.length
    batch = worst_case(document_lengths(micro_batch, length, max_length), objective)
    try:
        seconds = engine.warm_up(batch, adds_up=plan.num_micro_batches > 1)
    except torch.OutOfMemoryError as error:
        error.add_note(what_ran_out(plan, vars(error).get("part")))
        raise
    allocated, reserved = engine.all_reduce(torch.tensor(peak_memory(engine.device)).double(), "max").tolist()
    planned, why_not = planned_gib(plan)
    record = {
        "micro_batch": micro_batch,
        "length": length,
        "num_rows_read": plan.longest.num_read,
        "peak_memory_gib": allocated,
        "peak_reserved_gib": reserved or None,
        "planned_gib": planned,
        "device_gib": plan.gpu_gib,
        "seconds": seconds,
    }
    return record, (
        f"warm-up on {micro_batch} x {length:,} tokens ({plan.longest}): peak {allocated:.1f} GiB of "
        f"{plan.gpu_gib:.1f} ({why_not or f'planned {planned:.1f}'}), {seconds:.1f} s"
    )


def what_ran_out(plan: Plan, part: str | None) -> str:
    """What is said where memory runs out in `part` of a step."""
    lines = [
        f"lift_ds: it was the warm-up, before any step, on the largest micro-batch that may come, {plan.num_documents} "
        f"x {plan.setup.length:,} tokens ({plan.longest}); the device has {plan.gpu_gib:.1f} GiB."
    ]
    _, why_not = planned_gib(plan)
    if why_not:
        lines.append(why_not)
    else:
        moments = plan.memory.moments()
        named = [PLANNED_AS[part]] if part in PLANNED_AS else [*moments]
        lines += [f"  planned for the {name}: {moments[name] / GIB:.1f} GiB" for name in named if name in moments]
        lines += plan.remedies()
    if plan.longest.num_read is None:
        lines += [
            "  change data.max_length to what the rows need, or model.warm_up=false where none is that long",
            "  change data.check_rows to all rows: without packing the longest of them is taken then",
        ]
    return "\n".join(lines)


def planned_gib(plan: Plan) -> tuple[float | None, str]:
    """What was planned of what a rank can measure; or nothing, and why, for a family whose passes a plan cannot run."""
    try:
        return plan.measurable_gib(), ""
    except Exception as error:  # whatever a model of somebody's own raises without data; the run does not rest on it
        return None, f"not planned: {type(error).__name__}: {error}"
