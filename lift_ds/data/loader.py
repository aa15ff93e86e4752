"""Whole optimizer steps from a stream of rows: the same documents and noise on any number of ranks.

Every rank walks all lanes (that costs index arithmetic only) and reads the slots that are its own. A background thread
prepares the next steps; the position is committed when a step is consumed, not when it is prepared.
"""

from __future__ import annotations

import queue
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from lift_ds.config import ColumnsConfig

from .batch import Document, MicroBatch, Noise, collate, stand_in
from .chat import ChatEncoder, TooLongError
from .lanes import Lanes, SampleRef
from .records import detect_columns, read_conversation
from .sources import Manifest, Row

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
    """

    micro_batches: list[MicroBatch]
    num_tokens: int
    num_skipped: int
    state: dict[str, Any]


class RowReader:
    """Documents by reference: reads chunks (least recently used ones are forgotten) and tokenises rows.

    Args:
        manifest: The rows.
        encoder: Text to tokens.
        columns: The mapping, or `None` to detect it from the first row.
        system: System text put before every conversation.
        skip_long: Return `None` for rows that are too long, instead of raising.
        max_chunks: How many chunks are kept in memory.
    """

    def __init__(
        self,
        manifest: Manifest,
        encoder: ChatEncoder,
        columns: ColumnsConfig | None,
        system: str | None = None,
        skip_long: bool = False,
        max_chunks: int = 256,
    ) -> None:
        """Detects the columns where none are given."""
        self.manifest, self.encoder, self.system, self.skip_long = manifest, encoder, system, skip_long
        self.max_chunks = max_chunks
        self._chunks: OrderedDict[int, list[Row]] = OrderedDict()
        self.columns = columns or detect_columns(self.chunk(0)[0])

    def chunk(self, chunk_index: int) -> list[Row]:
        """Rows of one chunk."""
        if chunk_index not in self._chunks:
            self._chunks[chunk_index] = self.manifest.read(chunk_index)
            if len(self._chunks) > self.max_chunks:
                self._chunks.popitem(last=False)
        self._chunks.move_to_end(chunk_index)
        return self._chunks[chunk_index]

    def document(self, ref: SampleRef) -> Document | None:
        """The tokenised row, or `None` where it is too long and long rows are skipped.

        Raises:
            ValueError: The row does not fit the columns, or is too long; the message names file and line.
        """
        row = self.chunk(ref.chunk_index)[ref.row]
        try:
            tokens = self.encoder.encode(read_conversation(row, self.columns, self.system), row.where)
        except TooLongError:
            if self.skip_long:
                return None
            raise
        except Exception as error:  # templates and tokenizers raise what they like; the ranks must hear of all of it
            located = (
                str(error) if str(error).startswith(row.where) else f"{row.where}: {type(error).__name__}: {error}"
            )
            raise ValueError(located) from error
        return Document(tokens.ids, tokens.response_mask, tokens.filler_mask, ref.sample_id, ref.epoch, row.where)

    def by_sample_id(self, sample_ids: Iterable[int]) -> Iterator[Document]:
        """Documents of given rows, as of epoch 0; rows that are too long are left out where they are skipped."""
        for sample_id in sample_ids:
            chunk_index = bisect_right(self.manifest.first_ids, sample_id) - 1
            row = sample_id - self.manifest.first_ids[chunk_index]
            document = self.document(SampleRef(0, chunk_index, row, sample_id))
            if document is not None:
                yield document


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
        num_skipped = 0
        for slot in range(self.global_batch):
            ref = self.lanes.next((first_slot + slot) % self.lanes.num_lanes)
            if slot % self.world_size != self.rank:
                continue
            document = self.reader.document(ref)
            if document is None:
                num_skipped += 1
            else:
                pairs.append((document, self.noise_rule(document, step, slot)))
        pairs.sort(key=lambda pair: (-len(pair[0].ids), pair[0].sample_id))
        starts = range(0, self.num_micro_batches * self.micro_batch, self.micro_batch)
        micro_batches = [self.collate_pairs(pairs[start : start + self.micro_batch]) for start in starts]
        num_tokens = sum(len(document.ids) for document, _ in pairs)
        return StepBatch(micro_batches, num_tokens, num_skipped, self.lanes.state())

    def collate_pairs(self, pairs: list[tuple[Document, Noise]]) -> MicroBatch:
        """One micro-batch; of a stand-in where this rank is short of documents."""
        pairs = pairs or [stand_in(self.pad_token_id)]
        return collate([document for document, _ in pairs], [noise for _, noise in pairs], self.pad_token_id)


def micro_batches_per_step(global_batch: int, micro_batch: int, world_size: int) -> int:
    """Forwards per step on every rank: the gradient accumulation that gives the global batch."""
    return -(-global_batch // (micro_batch * world_size))
