"""Packs go from the rank that reads them to the rank that computes them.

A rank reads the slots of its own lanes. Before a step is made, the ranks tell each other the sizes of its packs, so
that all find the same cut, see `dealing`; then each sends its packs to where they are computed.
"""

from __future__ import annotations

import pickle
import threading

import numpy as np
import torch

from lift_ds.data.batch import Document
from lift_ds.ranks.background import Links

from .dealing import BatchRule, PackSize
from .lanes import SlotPlan

SlotPack = tuple[int, list[Document]]  # a slot of the step, and its documents


class PackExchange:
    """Deals a step's packs to the ranks."""

    def __init__(self, links: Links, slot_plan: SlotPlan, rule: BatchRule) -> None:
        self.links, self.slot_plan, self.rule = links, slot_plan, rule

    def deal(self, step: int, packs: list[SlotPack], stopping: threading.Event) -> list[list[SlotPack]]:
        """The micro-batches that this rank computes, as many on every rank, from the packs that it has read.

        A collective: a rank that could not read its packs calls it with none, so that the others need not wait.

        Raises:
            RuntimeError: `stopping` was set while waiting for other ranks, or one of them is gone.
        """
        plan, mine = self.slot_plan, dict(packs)
        sent = {slot: b"" if plan.world_size == 1 else pickle.dumps(documents) for slot, documents in packs}
        table = torch.zeros(plan.global_batch, 3, dtype=torch.float64)
        for slot, documents in packs:
            size = self.rule.size([len(document.ids) for document in documents])
            table[slot] = torch.tensor([size.num_tokens, size.cost, len(sent[slot])], dtype=torch.float64)
        rows = self.links.total(table, stopping).tolist()
        slots = [slot for slot, (num_tokens, *_) in enumerate(rows) if num_tokens]
        cut = self.rule.cut([PackSize(int(rows[slot][0]), rows[slot][1]) for slot in slots], plan.world_size)
        computed = [[[slots[place] for place in part] for part in parts] for parts in cut]
        mine |= self._move(step, sent, [int(num_bytes) for *_, num_bytes in rows], computed, stopping)
        return [[(slot, mine[slot]) for slot in part] for part in computed[plan.rank]]

    def _move(
        self,
        step: int,
        sent: dict[int, bytes],
        num_bytes: list[int],
        computed: list[list[list[int]]],
        stopping: threading.Event,
    ) -> dict[int, list[Document]]:
        """Sends what others compute; returns what others have read and this rank computes."""
        plan = self.slot_plan
        wanted = [sorted(slot for part in parts for slot in part) for parts in computed]
        parts = [b"".join(sent[slot] for slot in of_rank if slot in sent) for of_rank in wanted]
        expected = [
            [slot for slot in wanted[plan.rank] if plan.reader(step, slot) == rank] for rank in range(len(wanted))
        ]
        parts[plan.rank], expected[plan.rank] = b"", []
        sizes = [sum(num_bytes[slot] for slot in of_rank) for of_rank in expected]
        received = {}
        for of_rank, content in zip(expected, self.links.send(parts, sizes, stopping), strict=True):
            ends = np.cumsum([num_bytes[slot] for slot in of_rank])
            for slot, end in zip(of_rank, ends.tolist(), strict=True):
                received[slot] = pickle.loads(content[end - num_bytes[slot] : end])
        return received
