"""One training forward: noise, score, choose, train, inside one root module.

Both passes sit in one forward, because ZeRO-3 records which parameters a root module uses in which order and prefetches
them: two calls per step would invalidate that record every time. Every rank runs the same forwards whatever its data:
choices are tensors, and a rank that has nothing masked goes through the same graph with no rows.

Shapes: B documents, L tokens, R kept tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lift_ds.data.batch import MicroBatch
from lift_ds.diffusion.noise import superset_mask
from lift_ds.lift.selection import num_kept, select_kept
from lift_ds.models.head import MaskedDiffusionModel, masked_gold_logprob, weighted_nll


@dataclass(frozen=True)
class StepStats:
    """What one micro-batch shows, per document (B,): summed -log p and number of kept tokens."""

    nll_sum: Tensor
    num_kept: Tensor


class DiffusionStep(nn.Module):
    """The root module that DeepSpeed wraps: a model and how it is trained.

    Args:
        model: A masked diffusion model with `encode`, `head` and `config.mask_token_id`.
        is_scored: Whether the kept tokens are chosen by a scoring pass (LIFT) or all of the superset (vanilla SFT).
        time_scaling: Whether each token's loss is divided by its document's level t.

    Attributes:
        has_dropout: Whether the model draws random numbers while it trains.
        dropout_seed: Seed of the next forward's dropout; the global generator is used where it is `None`.
    """

    def __init__(self, model: MaskedDiffusionModel, is_scored: bool, time_scaling: bool = True) -> None:
        """Stores the model as `model`, the prefix that exports strip."""
        super().__init__()
        self.model: MaskedDiffusionModel = model
        self.is_scored = is_scored
        self.time_scaling = time_scaling
        self.has_dropout = has_dropout(self)
        self.dropout_seed: int | None = None
        self._row_gradients: list[tuple[Tensor, Tensor]] = []

    def forward(self, batch: MicroBatch, document_scale: Tensor) -> tuple[Tensor, StepStats]:
        """Loss of one micro-batch.

        Args:
            batch: The documents and their noise.
            document_scale: float32 (B,), what each document's loss is multiplied by (the normaliser, see `normalizer`).

        Returns:
            sum_b document_scale_b sum_{i kept} -log p_bi / t_b, and the statistics.
        """
        superset, filler = candidates(batch)
        kept = self.choose(batch, superset, filler) if self.is_scored else superset | filler
        noised_ids = self.mask(batch.clean_ids, kept)
        with self.keyed_dropout():
            rows = self.model.encode(noised_ids, batch.attention_mask)[kept]
        document_of_row = kept.nonzero()[:, 0]
        self.watch_gradient(rows, document_of_row)
        weights = document_scale / batch.t if self.time_scaling else document_scale
        loss, token_nll = weighted_nll(self.model, rows, batch.clean_ids[kept], weights[document_of_row])
        nll_sum = torch.zeros_like(batch.t).index_add_(0, document_of_row, token_nll)
        return loss, StepStats(nll_sum, kept.sum(-1))

    @torch.no_grad()
    def choose(self, batch: MicroBatch, superset: Tensor, filler: Tensor) -> Tensor:
        """Scores the superset and keeps the tokens of each document's component; fillers stay as drawn."""
        self.eval()
        masked = superset | filler
        scores = torch.zeros_like(batch.mask_uniform)
        scores[masked] = masked_gold_logprob(
            self.model, self.mask(batch.clean_ids, masked), masked, batch.clean_ids, batch.attention_mask
        )
        self.train()
        return filler | select_kept(scores, superset, batch.t, batch.rho, batch.component, scores=batch.tie_uniform)

    @contextmanager
    def keyed_dropout(self) -> Iterator[None]:
        """Draws dropout from `dropout_seed` where it is set, and leaves the global generators as they were."""
        if self.dropout_seed is None:
            yield
            return
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(self.dropout_seed)
            yield

    def mask(self, clean_ids: Tensor, masked: Tensor) -> Tensor:
        """The ids with the mask token on the masked positions."""
        return clean_ids.masked_fill(masked, self.model.config.mask_token_id)

    def watch_gradient(self, rows: Tensor, document_of_row: Tensor) -> None:
        """Keeps the loss's gradient at the final hidden states, for `pop_gradient_norms`."""
        if rows.requires_grad:
            rows.register_hook(lambda gradient: self._row_gradients.append((gradient, document_of_row)))

    def pop_gradient_norms(self, num_documents: int) -> Tensor:
        """Norm (B,) of the last micro-batch's gradient at each document's final hidden states, after its backward."""
        gradient, document_of_row = self._row_gradients.pop()
        squares = gradient.float().pow(2).sum(-1)
        return torch.zeros(num_documents, device=squares.device).index_add_(0, document_of_row, squares).sqrt()


def has_dropout(root: nn.Module) -> bool:
    """Whether a dropout module, or a dropout field of a config, is above 0."""
    modules = list(root.modules())
    fields = ("attention_dropout", "residual_dropout", "embedding_dropout")
    configs = [module.config for module in modules if hasattr(module, "config")]
    return any(isinstance(module, nn.Dropout) and module.p > 0 for module in modules) or any(
        getattr(config, field, 0) for config in configs for field in fields
    )


def candidates(batch: MicroBatch) -> tuple[Tensor, Tensor]:
    """The superset that components choose from, and the masked fillers: bool (B, L) each, disjoint.

    End tokens that only fill up a response are masked at level t and never scored or chosen: they would be the most
    confident tokens of any superset.
    """
    superset = superset_mask(batch.mask_uniform, batch.response_mask & ~batch.filler_mask, batch.t, batch.rho)
    filler = superset_mask(batch.mask_uniform, batch.filler_mask, batch.t, torch.zeros_like(batch.rho))
    return superset, filler


def count_kept(batch: MicroBatch) -> Tensor:
    """Number of tokens (B,) that each document will train on; known before any forward."""
    superset, filler = candidates(batch)
    return num_kept(superset.sum(-1), batch.t, batch.rho) + filler.sum(-1)


def sft_loss(
    model: MaskedDiffusionModel,
    clean_ids: Tensor,
    kept: Tensor,
    t: Tensor,
    num_targets: float | Tensor,
    time_scaling: bool = True,
    weights: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> Tensor:
    """Masked-diffusion loss of given masks: sum over kept of weights * CE / t, divided by `num_targets`.

    Args:
        model: A model from `load_pretrained`.
        clean_ids: int64 (B, L) true ids.
        kept: bool (B, L), the positions that are masked in the input and learned.
        t: (B,) levels in (0, 1].
        num_targets: The normaliser.
        time_scaling: Whether to divide by t.
        weights: (B, L) weights of single tokens.
        attention_mask: bool (B, L), false on padding.

    Returns:
        A differentiable scalar; 0 where nothing is kept.

    Raises:
        ValueError: A level is outside (0, 1].
    """
    if not bool(((t > 0) & (t <= 1)).all()):
        raise ValueError(f"t={t.tolist()}: levels must lie in (0, 1]; 1 is fully masked.")
    noised_ids = clean_ids.masked_fill(kept, model.config.mask_token_id)
    rows = model.encode(noised_ids, attention_mask)[kept]
    token_weights = (1.0 / t if time_scaling else torch.ones_like(t))[:, None].expand_as(clean_ids)
    token_weights = token_weights if weights is None else token_weights * weights
    loss, _ = weighted_nll(model, rows, clean_ids[kept], token_weights[kept])
    return loss / num_targets
