"""The normaliser of a step: what each document's loss is multiplied by.

    response_tokens   1 / (response tokens of the step, all micro-batches and ranks)
    masked_tokens     1 / (kept tokens of the step)
    per_example       1 / (documents of the step x response tokens of the document)     LLaDA GUIDELINES
    reference         1 / (micro-batches of the step x (B L - prompt tokens of the micro-batch, padding counted))

All but `reference` give the same gradient however the step is cut into micro-batches and ranks.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lift_ds.data.batch import MicroBatch
from lift_ds.objectives import Objective


def step_counts(micro_batches: list[MicroBatch], objective: Objective) -> Tensor:
    """What a rank adds to the step's totals: float64 (3,), its response tokens, learned tokens and documents.

    Learned tokens are NaN where the objective does not know them before its forward.
    """
    response = sum(int(batch.response_mask.sum()) for batch in micro_batches)
    counts = [objective.num_targets(batch) for batch in micro_batches]
    kept = sum(math.nan if count is None else float(count.sum()) for count in counts)
    documents = sum(sample_id >= 0 for batch in micro_batches for sample_id in batch.sample_ids)
    return torch.tensor([response, kept, documents], dtype=torch.float64)


def document_scale(batch: MicroBatch, normalizer: str, totals: Tensor, num_micro_batches: int) -> Tensor:
    """Factor of each document's summed loss: float32 (B,); `totals` are `step_counts`, both sums over all ranks."""
    response, kept, documents = totals.clamp(min=1.0).tolist()
    lengths = batch.response_mask.sum(-1).clamp(min=1).float()
    ones = torch.ones_like(lengths)
    if normalizer == "per_example":
        return 1.0 / (lengths * documents)
    if normalizer == "reference":
        prompt_tokens = int((batch.attention_mask & ~batch.response_mask).sum())
        return ones / (num_micro_batches * max(batch.clean_ids.numel() - prompt_tokens, 1))
    return ones / (response if normalizer == "response_tokens" else kept)
