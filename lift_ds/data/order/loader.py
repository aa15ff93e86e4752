"""Whole optimizer steps from a stream of packs: the same documents and noise on any number of ranks.

Packs come from this process or from worker processes, each of which runs some of the lanes. A background thread makes
the next steps of them; the position is committed when a step is consumed, not when it is prepared.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from lift_ds.data.batch import Document, MicroBatch, Noise, collate, stand_in

from .dealing import BatchRule
from .lanes import SlotPlan
from .stream import PackStream
from .workers import LanePackWorkers

STEPS_AHEAD = 2


class NoiseRule(Protocol):
    """What gives documents their random numbers."""

    def __call__(self, documents: Sequence[Document], step: int, positions: Sequence[SlotPosition]) -> list[Noise]:
        """Of a step's documents, each at its position."""


SlotPosition = tuple[int, int]  # slot of the step, and index in its pack


@dataclass(frozen=True)
class StepBatch:
    """One optimizer step of one rank.

    Args:
        micro_batches: At least one, of at least one document each; see `StepLoader.fill_up`.
        num_tokens: Tokens of this rank's documents, padding not counted.
        num_skipped: Rows that this rank left out because they are too long.
        num_bad_rows: Rows that this rank left out because they are malformed.
        state: The data position after this step; see `stream.merge_states`.
    """

    micro_batches: list[MicroBatch]
    num_tokens: int
    num_skipped: int
    num_bad_rows: int
    state: dict[str, Any]


class StepLoader:
    """Endless iterator of `StepBatch`es for one rank.

    Args:
        stream: Packs of every lane, standing where `first_step` begins.
        global_batch: Slots G of a step, over all ranks.
        batch_rule: How packs make micro-batches.
        num_workers: Processes that read, tokenise and pack; 0 leaves it to the background thread.
    """

    def __init__(
        self,
        stream: PackStream,
        noise_rule: NoiseRule,
        global_batch: int,
        batch_rule: BatchRule,
        rank: int,
        world_size: int,
        pad_token_id: int,
        first_step: int = 0,
        num_workers: int = 0,
    ) -> None:
        """Starts the background thread, and the workers, at the first `next`."""
        self.stream, self.noise_rule = stream, noise_rule
        num_lanes = stream.lanes.num_lanes
        has_own_lanes = num_lanes % world_size == 0
        follows_all = stream.capacity is None or not has_own_lanes
        if stream.capacity is None and not has_own_lanes:
            stream.read_ahead = 1
        self.slot_plan = SlotPlan(global_batch, num_lanes, rank, world_size, follows_all)
        self.batch_rule, self.pad_token_id = batch_rule, pad_token_id
        self.step = first_step
        self.num_workers = num_workers
        self.state = stream.state()
        self._workers: LanePackWorkers | None = None
        self._ready: queue.Queue[StepBatch | Exception] = queue.Queue(STEPS_AHEAD)
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def __iter__(self) -> StepLoader:
        return self

    def __next__(self) -> StepBatch:
        """The next step; what went wrong while it was prepared is raised here."""
        if self._thread is None:
            if self.num_workers:
                self._workers = LanePackWorkers(self.stream, self.slot_plan, self.step, self.num_workers)
            self._thread = threading.Thread(target=self._prepare, name="step-loader", daemon=True)
            self._thread.start()
        batch = self._ready.get()
        if isinstance(batch, Exception):
            raise batch
        self.state = batch.state
        return batch

    def close(self) -> None:
        """Stops the background thread and the workers."""
        self._stopping.set()
        while self._thread is not None and self._thread.is_alive():
            try:
                self._ready.get(timeout=0.05)
            except queue.Empty:
                continue
        if self._workers is not None:
            self._workers.close()

    def _prepare(self) -> None:
        prepared = self.state
        while not self._stopping.is_set():
            try:
                batch = self.make_step(self.step, prepared)
            except Exception as error:  # handed to the consumer, which raises it
                self._ready.put(error)
                return
            self._ready.put(batch)
            prepared = batch.state
            self.step += 1

    def make_step(self, step: int, before: dict[str, Any]) -> StepBatch:
        """Groups this rank's packs of one step; `before` is the data position where it begins."""
        packs: list[tuple[int, list[Document]]] = []
        num_skipped, num_bad_rows = 0, 0
        lanes = dict(before["lanes"])
        for slot, lane, is_own in self.slot_plan.slots(step):
            if self._workers is None:
                pack, lanes[str(lane)] = self.stream.take(lane, is_own)
            else:
                pack, lanes[str(lane)] = self._workers.take(lane, self._stopping)
            if pack is None:
                continue
            num_skipped += pack.num_long
            num_bad_rows += pack.num_bad
            if pack.documents:
                packs.append((slot, pack.documents))
        documents = [document for _, pack in packs for document in pack]
        positions = [(slot, index) for slot, pack in packs for index in range(len(pack))]
        noised = iter(zip(documents, self.noise_rule(documents, step, positions), strict=True))
        dealt = [[next(noised) for _ in pack] for _, pack in packs]
        sizes = [self.batch_rule.size([len(document.ids) for document in pack]) for _, pack in packs]
        parts = self.batch_rule.cut(sizes, 1)[0]
        micro_batches = [self._collate([pair for place in part for pair in dealt[place]]) for part in parts]
        num_tokens = sum(len(document.ids) for document in documents)
        return StepBatch(micro_batches, num_tokens, num_skipped, num_bad_rows, before | {"lanes": lanes})

    def fill_up(self, batch: StepBatch, num_micro_batches: int) -> StepBatch:
        """The same with stand-ins, where other ranks have more micro-batches: all run as many forwards."""
        missing = num_micro_batches - len(batch.micro_batches)
        return replace(batch, micro_batches=batch.micro_batches + [self._collate([]) for _ in range(missing)])

    def _collate(self, pairs: list[tuple[Document, Noise]]) -> MicroBatch:
        pairs = pairs or [stand_in(self.pad_token_id)]
        return collate([document for document, _ in pairs], [noise for _, noise in pairs], self.pad_token_id)
