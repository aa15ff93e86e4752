"""One training forward in four verbs: noise, score, choose, train, inside one root module.

Both passes sit in one forward, because ZeRO-3 records which parameters a root module uses in which order and prefetches
them: two calls per step would invalidate that record every time. Every rank runs the same forwards whatever its data:
choices are tensors, and a rank that has nothing masked goes through the same graph with no rows.

From noise to the end of backward the host never waits for the device: noise and sizes come from the CPU in one copy
(`noised`), results are read when the step is over (`results`). One exception: an objective that does not know how
many tokens it will learn (GIFT: its levels are the scoring pass's) makes the host wait once, in `positions`.

Shapes: B documents, D documents of the training view, L tokens, R masked tokens of it, N spans (`data.batch`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lift_ds.data.batch import MicroBatch
from lift_ds.method.components import Component
from lift_ds.method.loss import chunked_entropy, chunked_gold_logprob, chunked_weighted_nll
from lift_ds.method.positions import placed, positions, taken
from lift_ds.models.attention import Kernel
from lift_ds.models.head import LogitsModel, MaskedDiffusionModel, encode_rows
from lift_ds.models.keyed_dropout import DocumentRows, KeyedDropout, document_seeds
from lift_ds.models.registry import is_blockwise
from lift_ds.objectives import Objective
from lift_ds.objectives.objective import View, superset_level

from .modes import has_own_dropout, scoring_autocast, timed, without_dropout
from .noised import Noised
from .results import Observed, StepResult
from .routing import Choices

DropoutKey = tuple[int, int]  # the run's seed and the step: a forward's dropout is a function of them and the documents


@dataclass(frozen=True)
class Trained:
    """What the training pass gives of its learned tokens, R' of them in row-major order.

    Args:
        loss: The differentiable scalar.
        token_nll: float32 (R',), -log p.
        token_ids: int64 (R',), their true ids.
        at: int64 (R',), their places in the micro-batch's (B, L), in row-major order.
        span: int64 (R',), the document, or block of it, that each belongs to.
        is_filler: bool (R',), whether they only fill up a response.
        weights: float32 (R',), what each one's -log p is multiplied by in the loss.
    """

    loss: Tensor
    token_nll: Tensor
    token_ids: Tensor
    at: Tensor
    span: Tensor
    is_filler: Tensor
    weights: Tensor


class DiffusionStep(nn.Module):
    """The root module that DeepSpeed wraps: a model and how it is trained.

    Args:
        model: A masked diffusion model with `encode`, `head` and `config.mask_token_id`.
        objective: What is seen and learned.
        keeps_observations: Report what the passes show of tokens' difficulty.
        is_packed: Run documents one after the other, without padding, each seeing only itself.
        kernel: What computes attention; with `varlen` padded rows, too, run one after the other.

    Raises:
        ValueError: The model is a block diffusion model with dropout in its adapters.
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
        self.choices = Choices(model)

    def forward(
        self,
        batch: MicroBatch,
        document_scale: Tensor,
        dropout_key: DropoutKey = (0, 0),
        device: torch.device | None = None,
        balance_factor: float | None = None,
    ) -> tuple[Tensor, StepResult]:
        """Loss of one micro-batch, and what else it shows; `document_scale` (B,) is the normaliser, see `normalizer`.

        In backward the experts' balance loss joins it by its factor, where there is one; see `routing`.

        sum_b document_scale_b sum_{i learned} w_bi c(-log p_bi), w and c being the objective's

        The passes run on `device`, where batch and scale are moved to; where they are, if it is not given.
        """
        noised = Noised.of(self.objective, batch, self.objective.noise(batch), document_scale)
        noised = noised.to(device or batch.t.device)
        batch, probe = noised.batch, torch.zeros_like(noised.batch.t, requires_grad=True)
        with timed(batch.t.device, "scoring") as scoring_seconds:
            scores = self.score(noised)
        choice = self.objective.choose(batch, noised.candidates, scores)
        view = self.objective.view(batch, choice)  # twice as many documents where the complement is learned, too
        num_views = len(view.clean_ids) // len(batch.lengths)
        packed = batch.lengths * num_views if self.runs_packed(batch) else None
        self.choices.begin(batch, view, packed, balance_factor)
        trained = self.train_on(view, noised, dropout_key, probe)

        zeros = torch.zeros_like(batch.t)
        nll_sum = zeros.index_add(0, trained.span, trained.token_nll)
        num_kept = zeros.index_add(0, trained.span, torch.ones_like(trained.token_nll)).long()
        agreement = zeros.new_zeros(3) if choice.agreement is None else choice.agreement
        observed = self.observe(noised, scores, trained)
        result = StepResult(
            trained.loss.detach(),
            nll_sum,
            num_kept,
            weight_sums(trained.weights),
            agreement,
            observed,
            num_views,
            scoring_seconds,
            probe,
            self.choices.end(),
        )
        return trained.loss, result

    def score(self, noised: Noised) -> Tensor | None:
        """The pass that the objective declares, without dropout or gradient.

        A rank that wants no document scored runs one token of its first one, and ignores it: the pass is collective
        under ZeRO-3.

        Returns:
            float32 (B, L) at the masked positions of `candidates.scored` documents, 0 elsewhere; `None` without a pass.
        """
        if self.objective.scoring_pass == "none":
            return None
        batch, candidates = noised.batch, noised.candidates
        index, length = candidates.scored, batch.clean_ids.shape[1]
        if not noised.scored:
            index = index.new_zeros(1)
            length = length if isinstance(self.model, LogitsModel) else 1  # which may know one length only
        clean_ids, masked = batch.clean_ids[index, :length], candidates.masked[index, :length]
        at = positions(masked, noised.num_scored) if noised.scored else index[:0]
        gold_ids = taken(clean_ids, at)
        lengths = [min(batch.lengths[row], length) for row in noised.scored or [0]]

        def score_rows(hidden: Tensor, matrix: Tensor) -> Tensor:
            if self.objective.scoring_pass == "entropy":
                return chunked_entropy(hidden, matrix)
            return chunked_gold_logprob(hidden, matrix, gold_ids)

        with without_dropout(self), torch.no_grad(), scoring_autocast(clean_ids.device, self.objective.scores_in_bf16):
            noised_ids = clean_ids.masked_fill(masked, self.mask_token_id)
            hidden = self.encode(batch, noised_ids, clean_ids, at, batch.attention_mask[index, :length], lengths)
            row_scores = self.model.head(hidden, score_rows)
        scores = torch.zeros_like(batch.mask_uniform)
        return scores.index_copy(0, index, placed(row_scores, at, masked)) if noised.scored else scores

    def runs_packed(self, batch: MicroBatch) -> bool:
        """Whether documents run one after the other."""
        return self.is_packed or (self.kernel == "varlen" and batch.is_padded)

    def encode(
        self,
        batch: MicroBatch,
        noised_ids: Tensor,
        clean_ids: Tensor,
        at: Tensor,
        attention_mask: Tensor,
        lengths: list[int],
    ) -> Tensor:
        """Hidden states at positions (R,) of the batch's documents, some of them or all; see `encode_rows`."""
        visible = attention_mask if batch.is_padded else None  # with a mask kernels are slower, and cuDNN's is wrong
        packed = lengths if self.runs_packed(batch) else None
        return encode_rows(self.model, noised_ids, clean_ids, at, visible, packed, self.kernel)

    def train_on(self, view: View, noised: Noised, dropout_key: DropoutKey, probe: Tensor) -> Trained:
        """The pass with gradient; where the objective chooses in it, it learns only what its own scores choose."""
        batch, chooses = noised.batch, self.objective.chooses_in_training
        num_views = len(view.clean_ids) // len(batch.lengths)
        lengths = batch.lengths * num_views
        at = positions(view.targets, noised.num_masked if chooses else noised.num_kept(num_views))
        with self.seeded_dropout(batch, lengths, dropout_key):
            noised_ids = view.clean_ids.masked_fill(view.targets, self.mask_token_id)
            rows = self.encode(batch, noised_ids, view.clean_ids, at, view.attention_mask, lengths)
        length = view.targets.shape[1]
        document = view.document[at // length]
        in_batch, span = document * length + at % length, batch.span_at(document, at % length)
        rows = _GradientNorms.apply(rows, span, probe)
        gold_ids, is_filler = taken(view.clean_ids, at), taken(batch.filler_mask[view.document], at)
        weights = taken(view.weights, at) * noised.document_scale[document]

        def learn(hidden: Tensor, matrix: Tensor) -> tuple[Tensor, ...]:
            targets, factors = view.targets, weights
            if chooses or self.objective.weighs_by_gold:
                scores = placed(chunked_gold_logprob(hidden.detach(), matrix, gold_ids), at, targets)
            if chooses:
                targets = self.objective.choose(batch, noised.candidates, scores).targets
            if self.objective.weighs_by_gold:
                factors = factors * taken(self.objective.gold_weights(scores, targets), at)
            learned: tuple[Tensor, ...] = (hidden, gold_ids, factors, in_batch, span, is_filler)
            if chooses:
                kept = positions(taken(targets, at), noised.num_kept())
                learned = tuple(each.index_select(0, kept) for each in learned)
            hidden, token_ids, factors, places, spans, fillers = learned
            loss, token_nll = chunked_weighted_nll(hidden, matrix, token_ids, factors, self.objective.curve())
            return loss, token_nll, token_ids, places, spans, fillers, factors

        return Trained(*self.model.head(rows, learn))

    def observe(self, noised: Noised, scores: Tensor | None, trained: Trained) -> tuple[Observed, ...]:
        """What the scoring pass shows of all it scored, and the training pass of what it learned."""
        if not self.keeps_observations:
            return ()
        batch, candidates, observed = noised.batch, noised.candidates, []
        if scores is not None and self.objective.scoring_pass == "gold_logprob":
            index, length = candidates.scored, batch.clean_ids.shape[1]
            at = positions(candidates.masked[index], noised.num_scored)
            at = index[at // length] * length + at % length
            token_ids, levels, nll = (taken(each, at) for each in (batch.clean_ids, superset_level(batch), -scores))
            is_filler = taken(candidates.fillers, at)
            observed.append(Observed(token_ids, levels, nll, at, is_filler, torch.zeros_like(is_filler)))
        if self.objective.observes_targets:
            levels = batch.t[trained.span]
            is_chosen = batch.component[trained.span] != Component.RANDOM
            token_ids, nll, at = trained.token_ids, trained.token_nll, trained.at
            observed.append(Observed(token_ids, levels, nll, at, trained.is_filler, is_chosen))
        return tuple(observed)

    @contextmanager
    def seeded_dropout(self, batch: MicroBatch, lengths: list[int], key: DropoutKey) -> Iterator[None]:
        """Seeds the dropout of a training forward by the key and the documents, of which the view has these lengths.

        Adapters' masks depend on each document alone. The model's own dropout (0 in published configs) has one seed a
        micro-batch, by its first document; the global generators are left as they were.
        """
        samples = batch.sample_ids
        if self.keyed_dropouts:
            seeds = document_seeds(*key, samples, len(lengths) // len(samples), len(self.keyed_dropouts))
            rows = DocumentRows(lengths, seeds, self.runs_packed(batch), 1 + is_blockwise(self.model.config))
            for module in self.keyed_dropouts:
                module.rows = rows
        if not self.has_own_dropout:
            yield
            return
        device = batch.clean_ids.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(document_seeds(*key, samples[:1], 1, 1)[0][0])
            yield


def weight_sums(weights: Tensor) -> Tensor:
    """Sum, sum of squares and largest of weights (R,), 0 or more: float64 (3,)."""
    wide = torch.cat([weights, weights.new_zeros(1)]).double()  # there may be none
    return torch.stack([wide.sum(), wide.square().sum(), wide.max()])


class _GradientNorms(torch.autograd.Function):
    """The identity on rows (R, D), whose backward gives a probe (N,) the norm of each span's gradient."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, span: Tensor, probe: Tensor) -> Tensor:
        ctx.save_for_backward(span)
        ctx.num_spans = len(probe)
        return rows.view_as(rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, Tensor]:
        (span,) = ctx.saved_tensors
        squares = torch.linalg.vector_norm(gradient, dim=-1, dtype=torch.float32).square()  # without a copy of the rows
        zeros = squares.new_zeros(ctx.num_spans)
        return gradient, None, zeros.index_add_(0, span, squares).sqrt()
