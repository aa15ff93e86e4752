"""Whole optimizer steps from a stream of rows: the same documents and noise on any number of ranks.

Every rank walks all lanes (that costs index arithmetic only) and reads the slots that are its own. A background thread
prepares the next steps; the position is committed when a step is consumed, not when it is prepared.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .batch import Document, MicroBatch, Noise, collate, stand_in
from .lanes import Lanes
from .reader import RowReader, Skipped

STEPS_AHEAD = 2
NoiseRule = Callable[[Document, int, int], Noise]


@dataclass(frozen=True)
class StepBatch:
    """One optimizer step of one rank.

    Args:
        micro_batches: As many on every rank; at least one document each.
        num_tokens: Tokens of this rank's documents, padding not counted.
        num_skipped: Documents of this rank that were too long and skipped.
        state: The data position after this step.
        num_bad_rows: Documents of this rank that could not be read and were skipped.
    """

    micro_batches: list[MicroBatch]
    num_tokens: int
    num_skipped: int
    state: dict[str, Any]
    num_bad_rows: int = 0


class StepLoader:
    """Endless iterator of `StepBatch`es for one rank.

    Args:
        lanes: The order of samples.
        reader: Samples as documents.
        noise_rule: (document, step, slot) -> its random numbers.
        global_batch: Slots G of a step, over all ranks.
        micro_batch: Most documents of one forward.
        rank: This rank.
        world_size: Number of ranks.
        pad_token_id: Id written on padding.
        first_step: Number of the first step to produce.
    """

    def __init__(
        self,
        lanes: Lanes,
        reader: RowReader,
        noise_rule: NoiseRule,
        global_batch: int,
        micro_batch: int,
        rank: int,
        world_size: int,
        pad_token_id: int,
        first_step: int = 0,
    ) -> None:
        """Starts the background thread at the first `next`."""
        self.lanes, self.reader, self.noise_rule = lanes, reader, noise_rule
        self.global_batch, self.micro_batch = global_batch, micro_batch
        self.rank, self.world_size, self.pad_token_id = rank, world_size, pad_token_id
        self.num_micro_batches = micro_batches_per_step(global_batch, micro_batch, world_size)
        self.step = first_step
        self.state = lanes.state()
        self._ready: queue.Queue[StepBatch | Exception] = queue.Queue(STEPS_AHEAD)
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def __iter__(self) -> StepLoader:
        """Itself."""
        return self

    def __next__(self) -> StepBatch:
        """The next step; what went wrong while it was prepared is raised here."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._prepare, name="step-loader", daemon=True)
            self._thread.start()
        batch = self._ready.get()
        if isinstance(batch, Exception):
            raise batch
        self.state = batch.state
        return batch

    def close(self) -> None:
        """Stops the background thread."""
        self._stopping.set()
        while self._thread is not None and self._thread.is_alive():
            try:
                self._ready.get(timeout=0.05)
            except queue.Empty:
                continue

    def _prepare(self) -> None:
        while not self._stopping.is_set():
            try:
                self._ready.put(self.make_step(self.step))
            except Exception as error:  # handed to the consumer, which raises it
                self._ready.put(error)
                return
            self.step += 1

    def make_step(self, step: int) -> StepBatch:
        """Reads, tokenises and groups this rank's slots of one step."""
        first_slot = step * self.global_batch
        pairs: list[tuple[Document, Noise]] = []
        num_skipped = {Skipped.LONG: 0, Skipped.BAD: 0}
        for slot in range(self.global_batch):
            ref = self.lanes.next((first_slot + slot) % self.lanes.num_lanes)
            if slot % self.world_size != self.rank:
                continue
            document = self.reader.try_document(ref)
            if isinstance(document, Skipped):
                num_skipped[document] += 1
            else:
                pairs.append((document, self.noise_rule(document, step, slot)))
        pairs.sort(key=lambda pair: (-len(pair[0].ids), pair[0].sample_id))
        starts = range(0, self.num_micro_batches * self.micro_batch, self.micro_batch)
        micro_batches = [self.collate_pairs(pairs[start : start + self.micro_batch]) for start in starts]
        num_tokens = sum(len(document.ids) for document, _ in pairs)
        state = self.lanes.state()
        return StepBatch(micro_batches, num_tokens, num_skipped[Skipped.LONG], state, num_skipped[Skipped.BAD])

    def collate_pairs(self, pairs: list[tuple[Document, Noise]]) -> MicroBatch:
        """One micro-batch; of a stand-in where this rank is short of documents."""
        pairs = pairs or [stand_in(self.pad_token_id)]
        return collate([document for document, _ in pairs], [noise for _, noise in pairs], self.pad_token_id)


def micro_batches_per_step(global_batch: int, micro_batch: int, world_size: int) -> int:
    """Forwards per step on every rank: the gradient accumulation that gives the global batch."""
    return -(-global_batch // (micro_batch * world_size))
