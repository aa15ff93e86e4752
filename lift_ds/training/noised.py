"""A micro-batch with its noise, made on the CPU, where everything that decides the sizes of the passes is known."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lift_ds.data.batch import MicroBatch
from lift_ds.objectives import Objective
from lift_ds.objectives.objective import Candidates
from lift_ds.ranks.moving import Movable


@dataclass(frozen=True)
class Noised(Movable):
    """What a forward needs of its micro-batch: tensors, which go to the device in one copy, and numbers, which stay.

    Args:
        batch: The documents.
        candidates: What is masked before the choice.
        document_scale: float32 (B,), the normaliser; see `normalizer`.
        scored: Rows of the documents that are scored.
        num_scored: Masked tokens of them.
        num_masked: Masked tokens of all documents.
        num_learned: Tokens that are learned, the mean over the views; `None` where only the passes tell.
    """

    batch: MicroBatch
    candidates: Candidates
    document_scale: Tensor
    scored: list[int]
    num_scored: int
    num_masked: int
    num_learned: float | None

    @staticmethod
    def of(objective: Objective, batch: MicroBatch, candidates: Candidates, document_scale: Tensor) -> Noised:
        """Counts; where the micro-batch is on a device already, the host waits for it."""
        masked, learned = candidates.masked.sum(-1), objective.num_targets(batch)
        return Noised(
            batch,
            candidates,
            document_scale,
            scored=candidates.scored.tolist(),
            num_scored=int(masked[candidates.scored].sum()),
            num_masked=int(masked.sum()),
            num_learned=None if learned is None else float(learned.sum()),
        )

    def num_kept(self, num_views: int = 1) -> int | None:
        """Learned tokens of so many views."""
        return None if self.num_learned is None else round(num_views * self.num_learned)
