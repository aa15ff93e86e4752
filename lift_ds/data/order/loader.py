"""Whole optimizer steps from a stream of packs: the same documents and noise on any number of ranks.

Packs come from this process or from worker processes, each of which runs some of the lanes. A background thread makes
the next steps of them; the position is committed when a step is consumed, not when it is prepared.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from lift_ds.data.batch import Document, MicroBatch, Noise, collate, stand_in
from lift_ds.ranks.background import Links, NoLinks

from .dealing import BatchRule
from .exchange import PackExchange, SlotPack
from .lanes import SlotPlan
from .stream import PackStream
from .workers import LanePackWorkers

STEPS_AHEAD = 2


class NoiseRule(Protocol):
    """What gives documents their random numbers."""

    def __call__(self, documents: Sequence[Document], step: int, positions: Sequence[SlotPosition]) -> list[Noise]:
        """Of a step's documents, each at its position."""


class PreparesPacks(Protocol):
    """What is known of a step's documents before they are dealt."""

    def prepare(self, step: int, packs: list[SlotPack], noises: list[list[Noise]]) -> list[SlotPack]:
        """The packs that this rank reads, with what is known of them; all ranks' threads call it together."""


SlotPosition = tuple[int, int]  # slot of the step, and index in its pack


@dataclass(frozen=True)
class StepBatch:
    """One optimizer step of one rank.

    Args:
        micro_batches: As many on every rank; at least one document each.
        num_tokens: Tokens of their documents, padding not counted.
        num_skipped: Rows that this rank left out because they are too long.
        num_bad_rows: Rows that this rank left out because they are malformed.
        state: The data position after this step; see `stream.merge_states`.
    """

    micro_batches: list[MicroBatch]
    num_tokens: int
    num_skipped: int
    num_bad_rows: int
    state: dict[str, Any]


@dataclass(frozen=True)
class ReadPacks:
    """What a rank has read of a step: its packs, how many rows it left out, and where its lanes stand then."""

    packs: list[SlotPack]
    num_long: int
    num_bad: int
    lanes: dict[str, Any]


class StepLoader:
    """Iterator of `StepBatch`es for one rank.

    Args:
        stream: Packs of every lane, standing where `first_step` begins.
        global_batch: Slots G of a step, over all ranks.
        batch_rule: How packs make micro-batches.
        num_workers: Processes that read, tokenise and pack; 0 leaves it to the background thread.
        links: What connects the ranks' background threads.
        num_steps: Steps of the whole run; endless where not given.
        difficulties: What is known of rows, where it is kept.
        stopping: Set when the run ends.
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
        links: Links | None = None,
        num_steps: int | None = None,
        difficulties: PreparesPacks | None = None,
        stopping: threading.Event | None = None,
    ) -> None:
        """Starts the background thread, and the workers, at the first `next`."""
        self.stream, self.noise_rule = stream, noise_rule
        num_lanes = stream.lanes.num_lanes
        has_own_lanes = num_lanes % world_size == 0
        follows_all = stream.capacity is None or not has_own_lanes
        if stream.capacity is None and not has_own_lanes:
            stream.read_ahead = 1
        self.slot_plan = SlotPlan(global_batch, num_lanes, rank, world_size, follows_all)
        self.exchange = PackExchange(links or NoLinks(), self.slot_plan, batch_rule)
        self.pad_token_id = pad_token_id
        self.step, self.num_steps = first_step, num_steps
        self.num_workers, self.difficulties = num_workers, difficulties
        self.state = stream.state()
        self._workers: LanePackWorkers | None = None
        self._ready: queue.Queue[StepBatch | Exception] = queue.Queue(STEPS_AHEAD)
        self._stopping = stopping or threading.Event()
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
        while self.step != self.num_steps and not self._stopping.is_set():
            try:
                batch = self.make_step(self.step, prepared)
            except Exception as error:  # handed to the consumer, which raises it
                self._ready.put(error)
                return
            self._ready.put(batch)
            prepared = batch.state
            self.step += 1
        self._ready.put(StopIteration())

    def make_step(self, step: int, before: dict[str, Any]) -> StepBatch:
        """Reads this rank's packs of one step, and groups those that it computes; `before` is where the data stands."""
        read, problem = ReadPacks([], 0, 0, before["lanes"]), None
        try:
            read = self._read(step, before["lanes"])
        except Exception as error:  # raised when the other ranks know: they wait for this one's packs
            problem = error
        packs = read.packs
        if self.difficulties is not None:
            noises = [self.noise_rule(pack, step, _positions([(slot, pack)])) for slot, pack in packs]
            packs = self.difficulties.prepare(step, packs, noises)
        parts = self.exchange.deal(step, packs, self._stopping)
        if problem is not None:
            raise problem
        micro_batches = [self._collate(step, part) for part in parts]
        num_tokens = sum(len(document.ids) for part in parts for _, pack in part for document in pack)
        return StepBatch(micro_batches, num_tokens, read.num_long, read.num_bad, before | {"lanes": read.lanes})

    def _read(self, step: int, before: dict[str, Any]) -> ReadPacks:
        packs, num_long, num_bad, lanes = list[SlotPack](), 0, 0, dict(before)
        for slot, lane, is_own in self.slot_plan.slots(step):
            if self._workers is None:
                pack, lanes[str(lane)] = self.stream.take(lane, is_own)
            else:
                pack, lanes[str(lane)] = self._workers.take(lane, self._stopping)
            if pack is None:
                continue
            num_long += pack.num_long
            num_bad += pack.num_bad
            if pack.documents:
                packs.append((slot, pack.documents))
        return ReadPacks(packs, num_long, num_bad, lanes)

    def _collate(self, step: int, packs: list[SlotPack]) -> MicroBatch:
        """One micro-batch; a stand-in where there are no packs for it."""
        documents = [document for _, pack in packs for document in pack]
        positions = _positions(packs)
        if not documents:
            document, noise = stand_in(self.pad_token_id, self.difficulties is not None)
            return collate([document], [noise], self.pad_token_id)
        return collate(documents, self.noise_rule(documents, step, positions), self.pad_token_id, positions)


def _positions(packs: list[SlotPack]) -> list[SlotPosition]:
    return [(slot, index) for slot, pack in packs for index in range(len(pack))]
