"""One training forward in four verbs: noise, score, choose, train, inside one root module.

Both passes sit in one forward, because ZeRO-3 records which parameters a root module uses in which order and prefetches
them: two calls per step would invalidate that record every time. Every rank runs the same forwards whatever its data:
choices are tensors, and a rank that has nothing masked goes through the same graph with no rows.

Shapes: B documents, D documents of the training view, L tokens, R masked tokens of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lift_ds.data.batch import MicroBatch
from lift_ds.method.components import Component
from lift_ds.method.loss import chunked_entropy, chunked_gold_logprob, chunked_weighted_nll
from lift_ds.models.attention import Kernel
from lift_ds.models.head import LogitsModel, MaskedDiffusionModel, encode_rows
from lift_ds.models.keyed_dropout import DocumentRows, KeyedDropout, document_seeds
from lift_ds.objectives import Objective
from lift_ds.objectives.objective import Candidates, View, superset_level

from .modes import has_own_dropout, scoring_autocast, timed, without_dropout

DropoutKey = tuple[int, int]  # the run's seed and the step: a forward's dropout is a function of them and the documents
Observed = tuple[Tensor, Tensor, Tensor]  # of tokens (R,): their ids, the level of the input, and -log p(gold)


@dataclass(frozen=True)
class StepResult:
    """All that one micro-batch shows.

    Args:
        loss: float32 scalar, detached.
        nll_sum: float32 (B,), summed -log p of learned tokens.
        num_kept: int64 (B,), learned tokens.
        agreement: float32 (3,), see `Choice`; 0 where nothing was compared.
        observed: What the difficulty table may learn, without bias by the choice.
        num_views: How often the training pass saw each document.
        scoring_seconds: Tells what the pass without gradient took.
        gradient_probe: float32 (B,), a leaf whose gradient is `gradient_norms`.
    """

    loss: Tensor
    nll_sum: Tensor
    num_kept: Tensor
    agreement: Tensor
    observed: tuple[Observed, ...]
    num_views: int
    scoring_seconds: Callable[[], float]
    gradient_probe: Tensor

    @property
    def gradient_norms(self) -> Tensor:
        """Norm (B,) of the loss's gradient at each document's final hidden states, once its backward is done."""
        assert self.gradient_probe.grad is not None, "no backward yet"
        return self.gradient_probe.grad


@dataclass(frozen=True)
class Trained:
    """What the training pass gives of its learned tokens, R' of them in row-major order.

    Args:
        loss: The differentiable scalar.
        token_nll: float32 (R',), -log p.
        token_ids: int64 (R',), their true ids.
        document: int64 (R',), row of the micro-batch that each belongs to.
        is_filler: bool (R',), whether they only fill up a response.
    """

    loss: Tensor
    token_nll: Tensor
    token_ids: Tensor
    document: Tensor
    is_filler: Tensor


class DiffusionStep(nn.Module):
    """The root module that DeepSpeed wraps: a model and how it is trained.

    Args:
        model: A masked diffusion model with `encode`, `head` and `config.mask_token_id`.
        objective: What is seen and learned.
        keeps_observations: Report what the passes show of tokens' difficulty.
        is_packed: Run documents one after the other, without padding, each seeing only itself.
        kernel: What computes attention; with `varlen` padded rows, too, run one after the other.
    """

    def __init__(
        self,
        model: MaskedDiffusionModel,
        objective: Objective,
        keeps_observations: bool = False,
        is_packed: bool = False,
        kernel: Kernel = "sdpa",
    ) -> None:
        super().__init__()
        self.kernel = kernel
        self.model: MaskedDiffusionModel = model  # its name is the prefix that exports strip
        self.mask_token_id = model.config.mask_token_id
        self.objective, self.keeps_observations, self.is_packed = objective, keeps_observations, is_packed
        self.keyed_dropouts = [module for module in self.modules() if isinstance(module, KeyedDropout)]
        self.has_own_dropout = has_own_dropout(self)

    def forward(
        self, batch: MicroBatch, document_scale: Tensor, dropout_key: DropoutKey = (0, 0)
    ) -> tuple[Tensor, StepResult]:
        """Loss of one micro-batch, and what else it shows; `document_scale` (B,) is the normaliser, see `normalizer`.

        sum_b document_scale_b sum_{i learned} w_bi c(-log p_bi), w and c being the objective's
        """
        probe = torch.zeros_like(batch.t, requires_grad=True)
        candidates = self.objective.noise(batch)
        with timed(batch.t.device, "scoring") as scoring_seconds:
            scores = self.score(batch, candidates)
        choice = self.objective.choose(batch, candidates, scores)
        view = self.objective.view(batch, choice)  # twice as many documents where the complement is learned, too
        trained = self.train_on(view, batch, candidates, document_scale, dropout_key, probe)

        zeros = torch.zeros_like(batch.t)
        nll_sum = zeros.index_add(0, trained.document, trained.token_nll)
        num_kept = zeros.index_add(0, trained.document, torch.ones_like(trained.token_nll)).long()
        agreement = zeros.new_zeros(3) if choice.agreement is None else choice.agreement
        observed = self.observe(batch, candidates, scores, trained)
        loss, num_views = trained.loss.detach(), len(view.clean_ids) // len(batch.t)
        return trained.loss, StepResult(loss, nll_sum, num_kept, agreement, observed, num_views, scoring_seconds, probe)

    def score(self, batch: MicroBatch, candidates: Candidates) -> Tensor | None:
        """The pass that the objective declares, without dropout or gradient.

        A rank that wants no document scored runs one token of its first one, and ignores it: the pass is collective
        under ZeRO-3.

        Returns:
            float32 (B, L) at the masked positions of `candidates.scored` documents, 0 elsewhere; `None` without a pass.
        """
        if self.objective.scoring_pass == "none":
            return None
        masked, wanted = candidates.masked, candidates.scored
        index = wanted.nonzero()[:, 0]
        length = batch.clean_ids.shape[1]
        if len(index) == 0:
            index = torch.zeros_like(batch.sample_ids[:1])
            length = length if isinstance(self.model, LogitsModel) else 1  # which may know one length only
        clean_ids, seen = batch.clean_ids[index, :length], masked[index, :length]
        rows = seen & wanted[index, None]
        gold_ids = clean_ids[rows]

        def score_rows(hidden: Tensor, matrix: Tensor) -> Tensor:
            if self.objective.scoring_pass == "entropy":
                return chunked_entropy(hidden, matrix)
            return chunked_gold_logprob(hidden, matrix, gold_ids)

        with without_dropout(self), torch.no_grad(), scoring_autocast(clean_ids.device, self.objective.scores_in_bf16):
            noised_ids = clean_ids.masked_fill(seen, self.mask_token_id)
            hidden = self.encode(batch, noised_ids, rows, batch.attention_mask[index, :length])
            row_scores = self.model.head(hidden, score_rows)
        scores = torch.zeros_like(batch.mask_uniform)
        scores[masked & wanted[:, None]] = row_scores
        return scores

    def runs_packed(self, batch: MicroBatch) -> bool:
        """Whether documents run one after the other."""
        return self.is_packed or (self.kernel == "varlen" and batch.is_padded)

    def encode(self, batch: MicroBatch, noised_ids: Tensor, rows: Tensor, attention_mask: Tensor) -> Tensor:
        """Hidden states of rows (B, L) of the batch's documents, some of them or all; see `encode_rows`."""
        visible = attention_mask if batch.is_padded else None  # with a mask kernels are slower, and cuDNN's is wrong
        return encode_rows(self.model, noised_ids, rows, visible, self.runs_packed(batch), self.kernel)

    def train_on(
        self,
        view: View,
        batch: MicroBatch,
        candidates: Candidates,
        document_scale: Tensor,
        dropout_key: DropoutKey,
        probe: Tensor,
    ) -> Trained:
        """The pass with gradient; where the objective chooses in it, it learns only what its own scores choose."""
        with self.seeded_dropout(batch, view, dropout_key):
            noised_ids = view.clean_ids.masked_fill(view.targets, self.mask_token_id)
            rows = self.encode(batch, noised_ids, view.targets, view.attention_mask)
        document = view.document[view.targets.nonzero()[:, 0]]
        rows = _DocumentGradientNorms.apply(rows, document, probe)
        gold_ids = view.clean_ids[view.targets]
        weights = view.weights[view.targets] * document_scale[document]

        def learn(hidden: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            learned = torch.ones_like(gold_ids, dtype=torch.bool)
            if self.objective.chooses_in_training:
                scores = torch.zeros_like(view.weights)
                scores[view.targets] = chunked_gold_logprob(hidden.detach(), matrix, gold_ids)
                learned = self.objective.choose(batch, candidates, scores).targets[view.targets]
            kept = (hidden[learned], matrix, gold_ids[learned], weights[learned])
            return *chunked_weighted_nll(*kept, self.objective.curve()), learned

        loss, token_nll, learned = self.model.head(rows, learn)
        is_filler = batch.filler_mask[view.document][view.targets]
        return Trained(loss, token_nll, gold_ids[learned], document[learned], is_filler[learned])

    def observe(
        self, batch: MicroBatch, candidates: Candidates, scores: Tensor | None, trained: Trained
    ) -> tuple[Observed, ...]:
        """What the scoring pass shows of all it scored, and the training pass of tokens that no score selected."""
        if not self.keeps_observations:
            return ()
        observed = []
        if scores is not None and self.objective.scoring_pass == "gold_logprob":
            rows = candidates.superset & candidates.scored[:, None]
            observed.append((batch.clean_ids[rows], superset_level(batch)[rows], -scores[rows]))
        if self.objective.observes_targets:
            rows = (batch.component[trained.document] == Component.RANDOM) & ~trained.is_filler
            observed.append((trained.token_ids[rows], batch.t[trained.document[rows]], trained.token_nll[rows]))
        return tuple(observed)

    @contextmanager
    def seeded_dropout(self, batch: MicroBatch, view: View, key: DropoutKey) -> Iterator[None]:
        """Seeds the dropout of a training forward by the key and the documents.

        Adapters' masks depend on each document alone. The model's own dropout (0 in published configs) has one seed a
        micro-batch, by its first document; the global generators are left as they were.
        """
        samples = batch.sample_ids.tolist() if self.keyed_dropouts or self.has_own_dropout else []
        if self.keyed_dropouts:
            num_views = len(view.clean_ids) // len(samples)
            seeds = document_seeds(*key, samples, num_views, len(self.keyed_dropouts))
            rows = DocumentRows(view.attention_mask.sum(-1).tolist(), seeds, self.runs_packed(batch))
            for module in self.keyed_dropouts:
                module.rows = rows
        if not self.has_own_dropout:
            yield
            return
        device = batch.clean_ids.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(document_seeds(*key, samples[:1], 1, 1)[0][0])
            yield


class _DocumentGradientNorms(torch.autograd.Function):
    """The identity on rows (R, D), whose backward gives a probe (B,) the norm of each document's gradient."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, document: Tensor, probe: Tensor) -> Tensor:
        ctx.save_for_backward(document)
        ctx.num_documents = len(probe)
        return rows.view_as(rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, Tensor]:
        (document,) = ctx.saved_tensors
        squares = torch.linalg.vector_norm(gradient, dim=-1, dtype=torch.float32).square()  # without a copy of the rows
        zeros = squares.new_zeros(ctx.num_documents)
        return gradient, None, zeros.index_add_(0, document, squares).sqrt()
