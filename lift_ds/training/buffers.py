"""The difficulty table of a run, over all ranks: observations go to their owners, difficulties come from them.

Every rank calls the same functions in the same order, also where it has nothing to send. What moves in a sync: 24 bytes
for each (token, bin) pair that a rank observed since the last one. In a look-up: 8 bytes there and 4 back for each
pair of a step's supersets. Both are counted in `bytes_moved`.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from lift_ds.data.batch import MicroBatch
from lift_ds.method.components import Component
from lift_ds.method.difficulty import NUM_BINS, DifficultyTable, Observations, level_bin
from lift_ds.objectives.objective import candidates, superset_level
from lift_ds.ranks.background import ThreadRanks
from lift_ds.ranks.shares import Collectives
from lift_ds.storage.manifest import DIFFICULTY_FOLDER

from .results import Observed


class DifficultyBuffers:
    """A sharded `DifficultyTable`, at first empty, and its traffic; `sync_every` is in steps."""

    def __init__(self, vocab_size: int, ranks: Collectives | ThreadRanks, decay: float, sync_every: int) -> None:
        self._table = DifficultyTable(vocab_size, ranks.rank, ranks.world_size, decay)
        self._thread = ThreadPoolExecutor(1, "difficulty")
        self._noting: Future[None] | None = None
        self.ranks, self.sync_every = ranks, sync_every
        self.bytes_moved = 0

    @property
    def table(self) -> DifficultyTable:
        """The table, once all that was observed before is in it."""
        if self._noting is not None:
            self._noting.result()
            self._noting = None
        return self._table

    def release(self) -> None:
        """Nothing is held back: see `DifficultyMemory`."""

    def take(self, shown: list[tuple[MicroBatch, Observed]], step: int) -> None:
        """Observes what passes showed of tokens that no difficulty has chosen."""
        wanted = [(each, ~(each.is_filler | each.is_chosen)) for _, each in shown]
        self.observe([(each.token_ids[mask], each.levels[mask], each.nll[mask]) for each, mask in wanted], step)

    def observe(self, observed: Iterable[tuple[Tensor, Tensor, Tensor]], step: int) -> None:
        """Notes what this rank's passes showed in optimizer step `step` (from 1), and syncs where it is time.

        Noting is left to a thread while the next step begins; whoever asks for the table waits for it.
        """

        def note(table: DifficultyTable, shown: list[tuple[Tensor, Tensor, Tensor]]) -> None:
            table.observe([Observations.of(*each) for each in shown], step)

        self._noting = self._thread.submit(note, self.table, list(observed))
        if step % self.sync_every == 0:
            self.sync(step)

    def sync(self, step: int) -> None:
        """Hands pending observations to their owners."""
        sent = [torch.stack([part.keys.double(), part.sums, part.counts], 1) for part in self.table.outgoing(step)]
        received = [part.view(-1, 3) for part in self._exchange([part.flatten() for part in sent])]
        parts = [Observations(part[:, 0].long(), part[:, 1], part[:, 2]) for part in received]
        self.table.set_groups(self.ranks.all_reduce(self.table.absorb(parts, step)))

    def _exchange(self, parts: list[Tensor]) -> list[Tensor]:
        self.bytes_moved += sum(part.nbytes for rank, part in enumerate(parts) if rank != self.ranks.rank)
        return self.ranks.exchange(parts)

    def look_up(self, tokens: Tensor, levels: Tensor) -> Tensor:
        """Float32 (R,) expected -log p in nats of tokens (R,) at levels (R,)."""
        keys, inverse = (tokens * NUM_BINS + level_bin(levels)).unique(return_inverse=True)
        edges = torch.searchsorted(keys, self.table.bounds).tolist()
        asked = self._exchange(list(keys.tensor_split(edges)))
        return torch.cat(self._exchange([self.table.look_up(part) for part in asked]))[inverse]

    def fill(self, batches: list[MicroBatch]) -> list[MicroBatch]:
        """The micro-batches of a step with the difficulties of their supersets, from one look-up."""
        wanted = [
            candidates(batch).superset & batch.per_token(batch.component != Component.RANDOM) for batch in batches
        ]
        pairs = list(zip(batches, wanted, strict=True))
        tokens = torch.cat([batch.clean_ids[rows] for batch, rows in pairs])
        levels = torch.cat([superset_level(batch)[rows] for batch, rows in pairs])
        answers = self.look_up(tokens, levels).split([int(rows.sum()) for rows in wanted])
        return [
            replace(batch, difficulty=torch.zeros_like(batch.mask_uniform).masked_scatter(rows, answer))
            for (batch, rows), answer in zip(pairs, answers, strict=True)
        ]

    def files(self) -> dict[str, dict[str, Tensor]]:
        """This rank's file of a checkpoint, by its path there; nothing is synced for it."""
        state = {name: tensor.contiguous() for name, tensor in self.table.state().items()}
        return {f"{DIFFICULTY_FOLDER}/rank-{self.ranks.rank:05d}-of-{self.ranks.world_size:05d}.safetensors": state}

    def load(self, checkpoint: Path, step: int) -> bool:
        """Reads what this rank needs of those that saved, however many they were; `step` and the result as in `memory`.

        Raises:
            ValueError: They are missing, or of another vocabulary.
        """
        files = table_files(checkpoint)
        self.table.load_states({place: load_file(files[place]) for place in self.table.places_read(len(files))})
        return True


def table_files(checkpoint: Path) -> list[Path]:
    """The parts of a checkpoint's table, by rank.

    Raises:
        ValueError: It has none, or not all.
    """
    files = sorted((checkpoint / DIFFICULTY_FOLDER).glob("rank-*.safetensors"))
    if not files:
        raise ValueError(f"{checkpoint}: no difficulty buffers; it was written with difficulty.enabled=false.")
    if len(files) != (wanted := int(files[0].stem.rpartition("-")[2])):
        raise ValueError(f"{files[0].parent}: {len(files)} files of {wanted}; a rank's file is missing.")
    return files


def read_table(checkpoint: Path) -> DifficultyTable:
    """A checkpoint's whole table on one rank, with all that was pending taken in.

    Raises:
        ValueError: It has none.
    """
    states = [load_file(file) for file in table_files(checkpoint)]
    table = DifficultyTable(int(states[0]["numbers"][0]))
    table.load_states(dict(enumerate(states)))
    table.set_groups(table.absorb(table.outgoing(table.pending_step), table.pending_step))
    return table
