"""What a step's training passes count of the choices of mixtures of experts, and what of it is learned.

Counted are the response's tokens as the model denoises them, masked and revealed, fillers too: neither prompts nor
padding, nor the clean copy that block diffusion models see. Of an objective that learns the complement, both views.

The balance loss of a micro-batch (`models.balance`) counts by its part of the step's response tokens, over all ranks:

    loss of the step += factor * sum over layers, micro-batches m   n_m / N * E sum_e f_e,m P_e,m

P is a mean over the step's tokens however these are cut; f is that of a micro-batch, so that small ones are asked for
more evenness, the step's own choices not being known before its last forward.

Shapes: B documents, L tokens, E experts, M mixtures.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PretrainedConfig

from lift_ds.config.run import RunConfig
from lift_ds.data.batch import MicroBatch
from lift_ds.method.positions import positions, taken
from lift_ds.models.balance import NUM_SUMS, Counted
from lift_ds.models.experts import mixtures_of
from lift_ds.models.head import LogitsModel, MaskedDiffusionModel
from lift_ds.models.hollow import hollow_model
from lift_ds.models.registry import is_blockwise
from lift_ds.objectives.objective import View


class Choices:
    """The mixtures of a model, as training passes count their choices; of one without mixtures, nothing."""

    def __init__(self, model: MaskedDiffusionModel | LogitsModel) -> None:
        self.mixtures = mixtures_of(model)
        self.has_copies = is_blockwise(model.config)
        self.shape = (len(self.mixtures), len(self.mixtures[0].experts) + NUM_SUMS) if self.mixtures else (0, 0)

    def begin(self, batch: MicroBatch, view: View, packed: list[int] | None, factor: float | None) -> None:
        """Says what the next training pass counts.

        Args:
            batch: The micro-batch.
            view: What of it the pass sees.
            packed: Lengths of the view's documents, where they go one after the other.
            factor: Of the balance loss in the loss of this micro-batch; `None` where it is not learned.
        """
        if not self.mixtures:
            return
        tokens = batch.response_mask[view.document]
        if packed is not None:
            tokens = taken(tokens, positions(view.attention_mask, sum(packed)))[None]
        if self.has_copies:
            tokens = torch.cat([tokens, torch.zeros_like(tokens)], dim=1)
        counted = Counted(tokens.flatten(), factor)
        for mixture in self.mixtures:
            mixture.counted = counted

    def end(self) -> Tensor:
        """What the pass counted, float32 (M, E + 3), see `balance`.

        Later passes count nothing, but where the balance loss is learned: backward may compute a layer again.
        """
        for mixture in self.mixtures:
            if mixture.counted is not None and mixture.counted.factor is None:
                mixture.counted = None
        return torch.stack([mixture.sums for mixture in self.mixtures]) if self.mixtures else torch.zeros(self.shape)


def response_share(batch: MicroBatch, totals: Tensor) -> float:
    """A micro-batch's part of the step's response tokens; `totals` are `step_counts`, summed over all ranks."""
    return float(batch.response_mask.sum() / totals[0].clamp(min=1))


def require_router(run: RunConfig, config: PretrainedConfig) -> None:
    """Settings of routers need one.

    Raises:
        ValueError: A run of a model without mixtures of experts has them.
    """
    asked = [f"model.{name}" for name in ("freeze_router", "router_aux_loss") if getattr(run.model, name)]
    if asked and not mixtures_of(hollow_model(config)):
        raise ValueError(f"{', '.join(asked)}: the model ({config.model_type}) has no mixtures of experts; remove it.")
