"""The recorded steps of a run with exact scores, and what a difficulty memory chooses in them; for `memory.py`."""

from __future__ import annotations

import argparse
import sys
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from whole_steps import WholeSteps

from lift_ds.config.run import RunConfig
from lift_ds.config.training import OptimConfig
from lift_ds.data.batch import Document, MicroBatch, Noise, collate
from lift_ds.data.order.exchange import SlotPack
from lift_ds.method.components import Component
from lift_ds.models.attention import attention_kernels
from lift_ds.objectives import make_objective, objective_settings
from lift_ds.objectives.objective import Objective, superset_level
from lift_ds.ranks.background import Links, NoLinks, ThreadRanks
from lift_ds.ranks.launch import read_launch
from lift_ds.storage.safetensors_folder import SafetensorsFolder
from lift_ds.training.buffers import DifficultyBuffers
from lift_ds.training.engine import start_distributed
from lift_ds.training.inputs import prepare
from lift_ds.training.memory import DifficultyMemory
from lift_ds.training.results import Observed

REPOSITORY = Path(__file__).resolve().parents[1]
REFRESHED = 0.125
CHOSEN = (Component.EASY, Component.HARD)


class Recorder:
    """Takes the place of a run's difficulty buffers and keeps what each step's passes showed."""

    def __init__(self) -> None:
        self.steps: list[list[tuple[MicroBatch, Observed]]] = []

    def release(self) -> None:
        """Nothing is held back."""

    def fill(self, batches: list[MicroBatch]) -> list[MicroBatch]:
        """Exact scores need nothing."""
        return batches

    def take(self, passes: list[tuple[MicroBatch, Observed]], step: int) -> None:
        """Keeps a step."""
        self.steps.append(passes)


@dataclass(frozen=True)
class Recorded:
    """One step of the exact run.

    Args:
        documents: Its documents, one a slot.
        noises: Their random numbers.
        scored: float32 (B, L), -log p of the scoring pass; NaN elsewhere.
        learned: The same of the training pass.
    """

    documents: list[Document]
    noises: list[Noise]
    scored: Tensor
    learned: Tensor

    @staticmethod
    def of(passes: list[tuple[MicroBatch, Observed]]) -> Recorded:
        """Of a step of one micro-batch."""
        (batch, scoring), (_, training) = passes
        documents, noises = [], []
        for row, length in enumerate(batch.lengths):
            columns = (batch.clean_ids, batch.response_mask, batch.filler_mask)
            ids, response, filler = (each[row, :length].numpy() for each in columns)
            documents.append(Document(ids, response, filler, batch.sample_ids[row], 0, ""))
            uniforms = torch.stack([batch.mask_uniform[row, :length], batch.tie_uniform[row, :length]]).numpy()
            scalars = (batch.t, batch.rho, batch.count_uniform)
            t, rho, v = (float(each[row]) for each in scalars)
            noises.append(Noise(t, rho, int(batch.component[row]), uniforms, v))
        return Recorded(documents, noises, *(_placed(each, batch.clean_ids.shape) for each in (scoring, training)))


def _placed(observed: Observed, shape: torch.Size) -> Tensor:
    kept = observed.of(~observed.is_filler)
    return torch.full((shape.numel(),), torch.nan).index_copy(0, kept.at, kept.nll).view(shape)


def record(arguments: argparse.Namespace) -> list[Recorded]:
    """Trains with exact scores on one rank."""
    start_distributed(read_launch())
    data = {"path": arguments.data, "max_length": arguments.max_length, "check_rows": 0, "pad_targets": "all"}
    data |= {"pad_to_multiple": 48} if arguments.data.startswith("builtin:") else {"pad_targets": "one_eos"}
    if arguments.data.startswith("builtin:"):
        data["builtin_rows"] = arguments.rows
    run = RunConfig.model_validate(
        {"model": {"path": arguments.model}, "data": data, "eval": {"rows": 0, "every": 0, "solve_items": 0}}
    )
    prepared = prepare(run)
    lanes = prepared.data.stream.lanes
    rows: dict[int, Document] = {}
    while len(rows) < min(arguments.rows, prepared.data.num_rows):
        ref = lanes.next(len(rows) % lanes.num_lanes)
        document = prepared.data.reader.document(ref)
        rows.setdefault(document.sample_id, document)
    num_steps = len(rows) * arguments.passes // arguments.batch
    optim = OptimConfig(
        steps=num_steps, global_batch=arguments.batch, lr=arguments.lr, schedule="cosine", warmup_ratio=0.05,
        weight_decay=0.01, beta2=0.98,
    )  # fmt: skip
    steps = WholeSteps(
        prepared.config,
        SafetensorsFolder(prepared.folder),
        REPOSITORY / "ds_configs" / "zero2_micro16.json",
        objective_settings(method="lift3"),
        arguments.batch,
        has_bf16=False,
        optim=optim,
    )
    recorder = Recorder()
    steps.buffers = recorder  # type: ignore[assignment]
    chance, order, documents = np.random.default_rng(0), list[int](), list(rows.values())
    with attention_kernels(steps.engine.root.kernel):
        for number in range(num_steps):
            while len(order) < arguments.batch:
                order += chance.permutation(len(documents)).tolist()
            drawn, order = order[: arguments.batch], order[arguments.batch :]
            epoch = number * arguments.batch // len(documents)
            steps.engine.set_learning_rate(number)
            loss = steps.step([replace(documents[place], epoch=epoch) for place in drawn], number)
            if number % 20 == 0:
                print(f"recording: step {number} of {num_steps}, loss {loss:.3f}", file=sys.stderr, flush=True)
    return [Recorded.of(passes) for passes in recorder.steps]


class Agreement:
    """Sums of kappa by pass over the rows and by component, of scored and unscored documents."""

    def __init__(self, num_passes: int) -> None:
        self.sums = np.zeros((num_passes, 3, 2, 2))  # (pass, component, scored, common and possible), less chance

    def add(self, number: int, component: int, is_scored: bool, chosen: Tensor, exact: Tensor, size: int) -> None:
        """One document: bool (L,) choices of a superset of `size`."""
        k = int(exact.sum())
        chance = k * k / size if size else 0.0
        gains = (int((chosen & exact).sum()) - chance, k - chance)
        self.sums[min(number, len(self.sums) - 1), component, int(is_scored)] += gains

    def kappa(self, number: int, components: tuple[int, ...] = CHOSEN, only_unscored: bool = False) -> float:
        """Of one pass."""
        sums = self.sums[number, list(components), : 1 if only_unscored else 2].sum((0, 1))
        return float(sums[0] / sums[1]) if sums[1] else float("nan")


def chosen_by(objective: Objective, batch: MicroBatch, scores: Tensor) -> Tensor:
    """Bool (B, L), without fillers."""
    candidates = objective.noise(batch)
    return objective.choose(batch, candidates, scores).targets & ~candidates.fillers


def shown_by(batch: MicroBatch, step: Recorded, kept: Tensor) -> list[tuple[MicroBatch, Observed]]:
    """What passes of this choice would show."""
    scored = ~step.scored.isnan() & batch.is_refreshed[:, None]
    losses = torch.where(step.learned.isnan(), step.scored, step.learned)
    is_chosen = (batch.component != Component.RANDOM)[:, None].expand_as(kept)
    t = batch.t[:, None].expand_as(losses)
    passes = []
    for mask, levels, nll, chosen in (
        (scored, superset_level(batch), step.scored, scored & False),
        (kept, t, losses, is_chosen),
    ):
        at = mask.flatten().nonzero()[:, 0]
        ids, level, loss = (each.flatten()[at] for each in (batch.clean_ids, levels, nll))
        is_filler = torch.zeros_like(at, dtype=torch.bool)
        passes.append((batch, Observed(ids, level, loss, at, is_filler, chosen.flatten()[at])))
    return passes


def replay(
    steps: list[Recorded], budget: float, num_rows: int, num_passes: int, vocab_size: int, ranks: ThreadRanks
) -> tuple[Agreement, DifficultyMemory]:
    """One rank's share of the recorded steps, with a memory."""
    settings = objective_settings(method="lift3", scoring="memory", scoring_budget=budget)
    objective, agreement = make_objective(settings), Agreement(num_passes)
    table = DifficultyBuffers(vocab_size, ranks, decay=0.999, sync_every=1)
    memory = DifficultyMemory(table, ranks, budget, len(steps))
    num_seen = 0
    for number, step in enumerate(steps):
        mine = range(ranks.rank, len(step.documents), ranks.world_size)
        packs: list[SlotPack] = [(row, [step.documents[row]]) for row in mine]
        filled = memory.prepare(number, packs, [[step.noises[row]] for row in mine])
        documents = [document for _, (document,) in filled]
        batch = collate(documents, [step.noises[row] for row in mine], 0, [(slot, 0) for slot, _ in filled])
        width = batch.clean_ids.shape[1]
        own = replace(step, scored=step.scored[list(mine), :width], learned=step.learned[list(mine), :width])
        scores = torch.where(own.scored.isnan(), 0, -own.scored)
        kept = chosen_by(objective, batch, scores)
        for row, component in enumerate(batch.component.tolist()):
            size = int((~own.scored[row].isnan()).sum())
            if component in CHOSEN:
                exact = ~own.learned[row].isnan()
                agreement.add(num_seen // num_rows, component, bool(batch.is_refreshed[row]), kept[row], exact, size)
        memory.release()
        memory.take(shown_by(batch, own, kept), number + 1)
        num_seen += len(step.documents)
    return agreement, memory


def replay_table(steps: list[Recorded], num_rows: int, num_passes: int, vocab_size: int) -> Agreement:
    """The table alone, by token and level."""
    objective = make_objective(objective_settings(method="lift3", scoring="buffer"))
    ranks, chance = ThreadRanks(NoLinks(), 0, 1, threading.Event()), np.random.default_rng(1)
    table, agreement, num_seen = DifficultyBuffers(vocab_size, ranks, 0.999, 20), Agreement(num_passes), 0
    for number, step in enumerate(steps):
        is_refreshed = chance.random(len(step.documents)) < REFRESHED
        documents = [replace(each, is_scored=bool(one)) for each, one in zip(step.documents, is_refreshed, strict=True)]
        (batch,) = table.fill([collate(documents, step.noises, 0)])
        scores = torch.where(step.scored.isnan(), 0, -step.scored)
        kept = chosen_by(objective, batch, scores)
        for row, component in enumerate(batch.component.tolist()):
            if component in CHOSEN:
                exact, size = ~step.learned[row].isnan(), int((~step.scored[row].isnan()).sum())
                agreement.add(num_seen // num_rows, component, bool(is_refreshed[row]), kept[row], exact, size)
        table.take(shown_by(batch, step, kept), number + 1)
        num_seen += len(step.documents)
    return agreement


class ThreadLinks:
    """What connects threads of this process that play ranks."""

    def __init__(self, world_size: int) -> None:
        self.told: list[Any] = [None] * world_size
        self.barrier = threading.Barrier(world_size)

    def of(self, rank: int) -> Links:
        """One rank's."""
        return _ThreadLink(self, rank)

    def gather(self, rank: int, mine: Any) -> list[Any]:
        """Everyone's."""
        self.told[rank] = mine
        self.barrier.wait()
        everyones = list(self.told)
        self.barrier.wait()
        return everyones


@dataclass(frozen=True)
class _ThreadLink:
    all: ThreadLinks
    rank: int

    def total(self, values: Tensor, stopping: threading.Event) -> Tensor:
        return torch.stack(self.all.gather(self.rank, values)).sum(0)

    def send(self, parts: list[bytes], sizes: list[int], stopping: threading.Event) -> list[bytes]:
        return [of_rank[self.rank] for of_rank in self.all.gather(self.rank, parts)]

    def exchange(self, parts: list[Tensor], stopping: threading.Event) -> list[Tensor]:
        return [of_rank[self.rank] for of_rank in self.all.gather(self.rank, parts)]
