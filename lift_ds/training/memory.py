"""The difficulty memory of a run, over all ranks: what it knows before a step, and which documents it has scored.

It runs in the loader's thread, beside training. When step s is made, step s - 2 is over: what its passes showed goes to
the rows' owners, in (step, slot) order; then the step's documents are looked up, and those are chosen that the memory
is least sure of. So what step s learns depends on neither ranks, micro-batches nor time.

    taken      what a step showed, held until the next one begins: a checkpoint between them has it as pending
    pending    known, not yet with its owners; by step
    applied    in the owners' blocks

Traffic of a step between ranks: 9 bytes a token that was shown and 32 a document; 2 bytes a response token and 40 a
document looked up; and that of the table, see `buffers`.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from lift_ds.data.batch import MicroBatch, Noise
from lift_ds.data.order.exchange import SlotPack
from lift_ds.method.difficulty import level_bin
from lift_ds.method.memory import Records, RowMemory
from lift_ds.ranks.background import ThreadRanks
from lift_ds.storage.manifest import MEMORY_FOLDER

from .buffers import DifficultyBuffers
from .memory_files import load_blocks, memory_files, places_read
from .results import Observed
from .shown import SHOWN, Shown, nothing_shown
from .wanted import Wanted, doubts, want

STEPS_BEHIND = 2
ASKED = np.dtype([("row", "i8"), ("size", "i8")])


def _joined(arrays: list[np.ndarray], kind: type) -> np.ndarray:
    return np.concatenate([np.zeros(0, kind), *arrays])


class DifficultyMemory:
    """Table and rows of one rank.

    Args:
        table: The difficulty table, whose exchanges run in the same thread.
        ranks: What connects the ranks' threads.
        budget: Share of all documents that is scored exactly.
        num_steps: Steps of the whole run.
    """

    def __init__(self, table: DifficultyBuffers, ranks: ThreadRanks, budget: float, num_steps: int) -> None:
        self.table, self.ranks, self.num_steps = table, ranks, num_steps
        self.budget = Fraction(str(budget))  # 0.3 of 60 documents are 18
        self.rows = RowMemory(ranks.rank, ranks.world_size)
        self.pending: dict[int, Shown] = {}
        self.held: tuple[int, Shown] | None = None
        self.known = self.applied = -1
        self.num_documents: dict[int, int] = {}  # of all steps until one, by its number
        self.failure: Exception | None = None
        self.changed = threading.Condition()

    # the training thread

    def take(self, passes: Sequence[tuple[MicroBatch, Observed]], step: int) -> None:
        """Holds what the passes of optimizer step `step` (from 1) showed on this rank."""
        self.held = (step - 1, Shown.of(passes))

    def release(self) -> None:
        """Lets the loader's thread have what is held: the next step begins."""
        if self.held is None:
            return
        with self.changed:
            self.known, self.pending[self.known] = self.held[0], self.held[1]
            self.held = None
            self.changed.notify_all()

    def fill(self, batches: list[MicroBatch]) -> list[MicroBatch]:
        """They come filled."""
        return batches

    # the loader's thread

    def prepare(self, step: int, packs: list[SlotPack], noises: list[list[Noise]]) -> list[SlotPack]:
        """The packs of step `step` (from 0) that this rank reads, with what is expected of their tokens.

        A collective of the ranks' threads; it waits until step `step` - 2 is over.

        Raises:
            RuntimeError: The run ends, here or on another rank.
        """
        try:
            self._await(step - STEPS_BEHIND)
            for number in sorted(self.pending):
                if number <= step - STEPS_BEHIND:
                    self._apply(number)
            with self.changed:
                self.applied = step - STEPS_BEHIND
                self.changed.notify_all()
            return self._look_up(step, packs, noises)
        except Exception as error:  # for a save that waits for this thread
            with self.changed:
                self.failure = error
                self.changed.notify_all()
            raise

    def _await(self, step: int) -> None:
        with self.changed:
            while self.known < step:
                if self.ranks.stopping.is_set():
                    raise RuntimeError("stopped while the step before was waited for.")
                self.changed.wait(0.1)

    def _apply(self, step: int) -> None:
        shown = self.pending[step]
        columns = [torch.from_numpy(column) for column in (shown.token_ids, shown.levels, shown.nll)]
        for_table = torch.from_numpy(shown.for_table)
        self.table.observe([(columns[0][for_table], columns[1][for_table], columns[2][for_table])], step + 1)
        expected = self.table.look_up(columns[0], columns[1])
        residuals, bins = shown.nll - expected.numpy(), level_bin(columns[1]).numpy().astype(np.uint8)
        owners = np.array([self.rows.owner(row) for row in shown.documents["row"].tolist()], dtype=np.int64)
        of_tokens = owners.repeat(shown.documents["count"])
        parts = []
        for rank in range(self.ranks.world_size):
            tokens = of_tokens == rank
            parts.append([shown.documents[owners == rank], shown.places[tokens], residuals[tokens], bins[tokens]])
        received = [self._parted(part, (SHOWN, np.int32, np.float32, np.uint8)) for part in self._send(parts)]
        documents, places, values, bins = (np.concatenate(column) for column in zip(*received, strict=True))
        ends, written = np.cumsum(documents["count"]), []
        for number in np.lexsort([documents[name] for name in ("turn", "index", "slot")]).tolist():
            row, size, count = documents[["row", "size", "count"]][number].item()
            part = slice(ends[number] - count, ends[number])
            written.append((row, size, bins[part], places[part], values[part]))
        self.rows.write(written)
        del self.pending[step]

    def _look_up(self, step: int, packs: list[SlotPack], noises: list[list[Noise]]) -> list[SlotPack]:
        wanted = {
            (slot, index): found
            for (slot, pack), of_pack in zip(packs, noises, strict=True)
            for index, (document, noise) in enumerate(zip(pack, of_pack, strict=True))
            if (found := want(document, noise)) is not None
        }
        asked = list(wanted.values())
        records = self._records(asked)
        sizes = [len(each.superset) for each in asked]
        ends = np.cumsum([0, *sizes]).tolist()
        tokens = _joined([each.document.ids[each.superset] for each in asked], np.int64)
        levels = _joined([each.levels for each in asked], np.float32)
        expected = self.table.look_up(torch.from_numpy(tokens), torch.from_numpy(levels)).numpy() + records.trusted
        counts = [records.counts[start:end] for start, end in pairwise(ends)]
        of_documents = dict(zip(wanted, doubts(asked, counts), strict=True))
        scored = self._choose(step, of_documents, sum(len(pack) for _, pack in packs))
        difficulties = {place: expected[ends[number] : ends[number + 1]] for number, place in enumerate(wanted)}
        filled = []
        for slot, pack in packs:
            documents = []
            for index, document in enumerate(pack):
                difficulty = np.zeros(len(document.ids), np.float32)
                if (slot, index) in wanted:
                    difficulty[wanted[slot, index].superset] = difficulties[slot, index]
                documents.append(replace(document, difficulty=difficulty, is_scored=(slot, index) in scored))
            filled.append((slot, documents))
        return filled

    def _records(self, wanted: list[Wanted]) -> Records:
        """What the owners remember of the documents' supersets, one after the other."""
        owners = [self.rows.owner(each.document.sample_id) for each in wanted]
        asked = []
        for rank in range(self.ranks.world_size):
            mine = [each for each, owner in zip(wanted, owners, strict=True) if owner == rank]
            asked.append([np.array([(each.document.sample_id, each.size) for each in mine], ASKED)])
        answers = []
        for part in self._send(asked):
            (rows,) = self._parted(part, (ASKED,))
            found = [self.rows.read(row, size) for row, size in rows.tolist()]
            answers.append([np.concatenate([np.zeros(0, np.uint16), *found])])
        received = [self._parted(part, (np.uint16,))[0] for part in self._send(answers)]
        offsets, packed = [0] * self.ranks.world_size, []
        for each, owner in zip(wanted, owners, strict=True):
            packed.append(received[owner][offsets[owner] + each.places])
            offsets[owner] += each.size
        return Records.unpacked(_joined(packed, np.uint16))

    def _choose(self, step: int, doubts: dict[tuple[int, int], float], num_documents: int) -> set[tuple[int, int]]:
        """Which documents of the whole step are scored: those of most doubt, as many as the budget has."""
        rows = [(num_documents, -1, 0.0), *((*place, value) for place, value in doubts.items())]
        mine = torch.tensor(rows, dtype=torch.float64).flatten()
        table = torch.cat(self.ranks.exchange([mine] * self.ranks.world_size)).view(-1, 3).numpy()
        is_total = table[:, 1] < 0
        before = self.num_documents.get(step - 1, 0)
        after = before + int(table[is_total, 0].sum())
        quota, candidates = math.floor(self.budget * after) - math.floor(self.budget * before), table[~is_total]
        self.num_documents = {number: self.num_documents[number] for number in self.num_documents if number >= step - 2}
        self.num_documents[step] = after
        order = np.lexsort([candidates[:, 1], candidates[:, 0], -candidates[:, 2]])[:quota]
        return {(int(slot), int(index)) for slot, index, _ in candidates[order].tolist()}

    def _send(self, parts: list[list[np.ndarray]]) -> list[Tensor]:
        """Arrays to each rank, and what each sent here, as bytes behind the arrays' lengths."""
        sent = []
        for arrays in parts:
            lengths = np.array([len(array) for array in arrays], np.int64)
            content = b"".join(array.tobytes() for array in (lengths, *arrays))
            sent.append(torch.frombuffer(bytearray(content), dtype=torch.uint8))
        return self.ranks.exchange(sent)

    @staticmethod
    def _parted(content: Tensor, types: tuple[np.dtype | type, ...]) -> list[np.ndarray]:
        data, start = content.numpy().tobytes(), 8 * len(types)
        arrays = []
        for length, kind in zip(np.frombuffer(data, np.int64, len(types)).tolist(), types, strict=True):
            arrays.append(np.frombuffer(data, kind, length, start))
            start += length * np.dtype(kind).itemsize
        return arrays

    # checkpoints

    def files(self) -> dict[str, dict[str, Tensor]]:
        """This rank's files of a checkpoint, by their paths there: its blocks, what is pending, its part of the table.

        Raises:
            RuntimeError: The loader's thread has failed.
        """
        last = -1 if self.held is None else self.held[0]
        settled = min(last + 1, self.num_steps - 1) - STEPS_BEHIND  # what the loader has applied, or soon will
        with self.changed:
            while self.applied < settled:
                if self.failure is not None:
                    raise RuntimeError(f"the difficulty memory was not brought up to date: {self.failure}")
                self.changed.wait(0.1)
        tensors = {}
        for number, sizes, records in self.rows.state():
            tensors[f"block.{number}.sizes"], tensors[f"block.{number}.records"] = sizes, records
        pending = self.pending | ({} if self.held is None else dict([self.held]))
        for step, shown in pending.items():
            for place, column in enumerate(shown.columns()):
                tensors[f"pending.{step}.{place}"] = np.frombuffer(bytearray(column.tobytes()), np.uint8)
        numbers = np.array([self.applied, *sorted(pending)], np.int64)
        num_documents = np.array([self.num_documents.get(last, 0)], np.int64)
        tensors |= {"numbers": numbers, "num_documents": num_documents}
        name = f"{MEMORY_FOLDER}/rank-{self.ranks.rank:05d}-of-{self.ranks.world_size:05d}.safetensors"
        return {name: {key: torch.from_numpy(array) for key, array in tensors.items()}} | self.table.files()

    def load(self, checkpoint: Path, step: int) -> bool:
        """Reads what this rank owns of the parts of all ranks that saved after step `step`, however many they were.

        Returns:
            Whether there were any: a checkpoint of a run that scored otherwise has none, and nothing is remembered.

        Raises:
            ValueError: They are not whole.
        """
        self.table.load(checkpoint, step)
        self.applied = self.known = step - 1
        files = memory_files(checkpoint)
        for place in places_read(self.ranks.rank, self.ranks.world_size, len(files)):
            with safe_open(files[place], framework="np") as opened:
                applied, *steps = opened.get_tensor("numbers").tolist()
                load_blocks(opened, self.rows)
                for step in steps:
                    known = self.pending.setdefault(step, nothing_shown())
                    if place % self.ranks.world_size == self.ranks.rank:
                        columns = [
                            np.frombuffer(opened.get_tensor(f"pending.{step}.{column}").tobytes(), empty.dtype)
                            for column, empty in enumerate(known.columns())
                        ]
                        joined = zip(known.columns(), columns, strict=True)
                        self.pending[step] = Shown(*(np.concatenate(pair) for pair in joined))
                self.applied, self.known = applied, max([applied, *steps])
                self.num_documents = {self.known: int(opened.get_tensor("num_documents")[0])}
        return bool(files)


Difficulties = DifficultyBuffers | DifficultyMemory
"""What a run knows of tokens: by token and level, or by row and place as well."""
