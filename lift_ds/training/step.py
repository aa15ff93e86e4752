"""One training forward: score, choose, train, inside one root module.

Both passes sit in one forward, because ZeRO-3 records which parameters a root module uses in which order and prefetches
them: two calls per step would invalidate that record every time. Every rank runs the same forwards whatever its data:
choices are tensors, and a rank that has nothing masked goes through the same graph with no rows.

Shapes: B documents, L tokens, R learned tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lift_ds.data.batch import MicroBatch
from lift_ds.method.components import Component
from lift_ds.method.difficulty import Observations
from lift_ds.method.loss import chunked_entropy, chunked_gold_logprob, chunked_weighted_nll
from lift_ds.models.head import MaskedDiffusionModel, encode_rows
from lift_ds.models.keyed_dropout import DocumentRows, KeyedDropout, document_seeds
from lift_ds.objectives import Objective
from lift_ds.objectives.objective import View, superset_level

from .stopwatch import Stopwatch


@dataclass(frozen=True)
class StepStats:
    """What one micro-batch shows.

    Args:
        nll_sum: float32 (B,), summed -log p of learned tokens.
        num_kept: int64 (B,), learned tokens.
        agreement: float32 (3,), see `objectives.base.View`.
    """

    nll_sum: Tensor
    num_kept: Tensor
    agreement: Tensor


class DiffusionStep(nn.Module):
    """The root module that DeepSpeed wraps: a model and how it is trained.

    Args:
        model: A masked diffusion model with `encode`, `head` and `config.mask_token_id`.
        objective: What is seen and learned.
        keeps_observations: Keep what the passes show of tokens' difficulty, for `pop_observations`.
        is_packed: Run documents one after the other, without padding, each seeing only itself.

    Attributes:
        keyed_dropouts: Dropouts of the adapters, seeded by document.
        has_own_dropout: Whether the model itself draws random numbers while it trains; seeded by micro-batch.
        dropout_key: The run's seed and the step, of which the next forward's dropout is a function.
        scoring_time: What passes without gradient take.
    """

    def __init__(
        self,
        model: MaskedDiffusionModel,
        objective: Objective,
        keeps_observations: bool = False,
        is_packed: bool = False,
    ) -> None:
        """Stores the model as `model`, the prefix that exports strip."""
        super().__init__()
        self.model: MaskedDiffusionModel = model
        self.objective = objective
        self.keeps_observations = keeps_observations
        self.is_packed = is_packed
        self.keyed_dropouts = [module for module in self.modules() if isinstance(module, KeyedDropout)]
        self.has_own_dropout = has_own_dropout(self)
        self.dropout_key = (0, 0)
        self.scoring_time = Stopwatch()
        self._row_gradients: list[tuple[Tensor, Tensor]] = []
        self._observed: list[tuple[Tensor, Tensor, Tensor]] = []

    def forward(self, batch: MicroBatch, document_scale: Tensor) -> tuple[Tensor, StepStats]:
        """Loss of one micro-batch.

        Args:
            batch: The documents and their noise.
            document_scale: float32 (B,), what each document's loss is multiplied by (the normaliser, see `normalizer`).

        Returns:
            sum_b document_scale_b sum_{i learned} w_bi c(-log p_bi), and the statistics; w and c are the objective's.
        """
        view = self.objective.view(batch, self)
        with self.seeded_dropout(batch, view):
            rows = encode_rows(self.model, view.noised_ids, view.targets, view.attention_mask, self.is_packed)
        document = view.document[view.targets.nonzero()[:, 0]]
        self.watch_gradient(rows, document)
        gold_ids = view.clean_ids[view.targets]
        weights = view.weights[view.targets] * document_scale[document]
        learned = torch.ones_like(gold_ids, dtype=torch.bool)

        def loss_of(hidden: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor]:
            if view.narrow is not None:
                scores = torch.zeros_like(view.weights)
                scores[view.targets] = chunked_gold_logprob(hidden.detach(), matrix, gold_ids)
                learned.copy_(view.narrow(scores)[view.targets])
            return chunked_weighted_nll(
                hidden[learned], matrix, gold_ids[learned], weights[learned], self.objective.curve()
            )

        loss, token_nll = self.model.head(rows, loss_of)
        is_filler = batch.filler_mask[view.document][view.targets]
        self.note(batch, document[learned], gold_ids[learned], token_nll, is_filler[learned])
        zeros = torch.zeros_like(batch.t)
        nll_sum = zeros.index_add(0, document[learned], token_nll)
        num_kept = zeros.index_add(0, document, learned.float()).long()
        return loss, StepStats(nll_sum, num_kept, zeros.new_zeros(3) if view.agreement is None else view.agreement)

    def gold_logprob(self, batch: MicroBatch, masked: Tensor, wanted: Tensor) -> Tensor:
        """Log p(clean) float32 (B, L) of masked positions of wanted (B,) documents; 0 elsewhere."""
        scores = self.score(batch, masked, wanted, chunked_gold_logprob)
        if self.keeps_observations:
            rows = masked & wanted[:, None] & ~batch.filler_mask
            self._observed.append((batch.clean_ids[rows], superset_level(batch)[rows], -scores[rows]))
        return scores

    def note(self, batch: MicroBatch, document: Tensor, gold_ids: Tensor, token_nll: Tensor, is_filler: Tensor) -> None:
        """Keeps what the training pass shows of tokens that were not selected by their scores."""
        if self.keeps_observations and self.objective.observes_targets:
            rows = (batch.component[document] == Component.RANDOM) & ~is_filler
            self._observed.append((gold_ids[rows], batch.t[document[rows]], token_nll[rows]))

    def pop_observations(self) -> list[Observations]:
        """What the micro-batches since the last call showed of tokens' difficulty, without bias by the selection."""
        found = [Observations.of(*each) for each in self._observed]
        self._observed.clear()
        return found

    def entropy(self, batch: MicroBatch, masked: Tensor) -> Tensor:
        """Entropy float32 (B, L) of masked positions; 0 elsewhere."""
        wanted = torch.ones_like(batch.t, dtype=torch.bool)
        return self.score(batch, masked, wanted, lambda hidden, matrix, _: chunked_entropy(hidden, matrix))

    @torch.no_grad()
    def score(
        self, batch: MicroBatch, masked: Tensor, wanted: Tensor, of_rows: Callable[[Tensor, Tensor, Tensor], Tensor]
    ) -> Tensor:
        """One number (B, L) for each masked position of wanted documents, from a pass without dropout or gradient.

        A rank that wants no document runs one token of its first one, and ignores it: the pass is collective under
        ZeRO-3.
        """
        index = wanted.nonzero()[:, 0]
        length = batch.clean_ids.shape[1]
        if len(index) == 0:
            index, length = torch.zeros_like(batch.sample_ids[:1]), 1
        clean_ids, seen = batch.clean_ids[index, :length], masked[index, :length]
        rows = seen & wanted[index, None]
        narrow = self.objective.settings.scoring_precision == "bf16"
        self.eval()
        # no cache: it would keep a copy of every weight, also after ZeRO-3 let go of the weight
        autocast = torch.autocast(clean_ids.device.type, torch.bfloat16, enabled=narrow, cache_enabled=False)
        with autocast, self.scoring_time:
            visible = batch.attention_mask[index, :length]
            hidden = encode_rows(self.model, self.mask(clean_ids, seen), rows, visible, self.is_packed)
            found = self.model.head(hidden, lambda chosen, matrix: of_rows(chosen, matrix, clean_ids[rows]))
        self.train()
        scores = torch.zeros_like(batch.mask_uniform)
        scores[masked & wanted[:, None]] = found
        return scores

    @contextmanager
    def seeded_dropout(self, batch: MicroBatch, view: View) -> Iterator[None]:
        """Seeds the dropout of a training forward by `dropout_key` and the documents.

        Adapters' masks depend on each document alone. The model's own dropout (0 in published configs) has one seed a
        micro-batch, by its first document; the global generators are left as they were.
        """
        samples = batch.sample_ids.tolist() if self.keyed_dropouts or self.has_own_dropout else []
        if self.keyed_dropouts:
            num_views = len(view.noised_ids) // len(samples)
            seeds = document_seeds(*self.dropout_key, samples, num_views, len(self.keyed_dropouts))
            rows = DocumentRows(view.attention_mask.sum(-1).tolist(), seeds, self.is_packed)
            for module in self.keyed_dropouts:
                module.rows = rows
        if not self.has_own_dropout:
            yield
            return
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(document_seeds(*self.dropout_key, samples[:1], 1, 1)[0][0])
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


def has_own_dropout(root: nn.Module) -> bool:
    """Whether a dropout module other than the adapters', or a dropout field of a config, is above 0."""
    modules = list(root.modules())
    fields = ("attention_dropout", "residual_dropout", "embedding_dropout")
    configs = [module.config for module in modules if hasattr(module, "config")]
    return any(isinstance(module, nn.Dropout) and module.p > 0 for module in modules) or any(
        getattr(config, field, 0) for config in configs for field in fields
    )
