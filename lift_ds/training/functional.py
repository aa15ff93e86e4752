"""Losses as plain functions of a model: what the trainer computes, for use without it.

    lift_loss   noise, score, choose and train, all in one
    sft_loss    of masks that are given
    gift_loss   GIFT, normalised as its public code does

Shapes: B documents, L tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch
from pydantic import ValidationError
from pydantic_core import ErrorDetails
from torch import Tensor, nn

from lift_ds.data.batch import MicroBatch
from lift_ds.method.loss import chunked_entropy, chunked_weighted_nll
from lift_ds.method.noise import level_from_uniform, narrowed
from lift_ds.method.selection import component_tensor
from lift_ds.models.attention import Kernel, attention_kernels, choose_attention
from lift_ds.models.head import LogitsModel, MaskedDiffusionModel
from lift_ds.models.registry import refuse_blockwise
from lift_ds.objectives import Objective, make_objective, methods_with, objective_settings
from lift_ds.objectives.gift import gift_levels
from lift_ds.section import refused_value

from .step import DiffusionStep

TRAINERS_OPTIONS = {
    "normalizer": "the loss is divided by num_targets",
    "t_sampling": "levels are drawn here one by one; give t to spread them",
    "level_per": "it is for models that denoise block after block",
}

BLOCK_LOSS = "its loss of given masks is lift_ds.block_sft_loss(...)."


def lift_loss(
    model: nn.Module,
    clean_ids: Tensor,
    response_mask: Tensor,
    *,
    method: str = "lift3",
    attention_mask: Tensor | None = None,
    num_targets: float | Tensor | None = None,
    mask_token_id: int | None = None,
    right_shift_logits: bool = False,
    t: Tensor | None = None,
    rho: Tensor | None = None,
    component: str | Tensor | Sequence[str] | None = None,
    mask_uniform: Tensor | None = None,
    tie_uniform: Tensor | None = None,
    v: Tensor | None = None,
    generator: torch.Generator | None = None,
    **options: Any,
) -> Tensor:
    """LIFT's loss of one batch, for a training loop of your own: the trainer's step on the same numbers.

    Draws a level for each document, masks a superset, scores it without gradient, keeps the easy, hard or random ones,
    reveals the others, and takes the loss of that input: sum over kept of CE / t, divided by `num_targets`. Two
    forwards of the model, one of them with gradient; only that one for `vanilla`, `random` and
    `scoring="approximate"`. Where no document needs scores, the first runs one token, so that ranks stay together.

    Args:
        model: From `load_pretrained`, or any model, wrapped (DDP, PEFT) or not, that is called with `input_ids` (and
            `attention_mask` where rows are padded) and returns logits (B, L, V). Of a wrapped model all are held.
        clean_ids: int64 (B, L) true ids.
        response_mask: bool (B, L), the tokens that may be masked and learned; false on prompts and padding.
        method: `lift3`, `lift2`, `easy`, `hard`, `random`, `vanilla` or `gift`.
        attention_mask: bool (B, L), false on padding, which is on the right.
        num_targets: The normaliser; the batch's response tokens where not given. With several micro-batches or ranks
            a step, give what it is over all of them.
        mask_token_id: The mask token; `model.config.mask_token_id` where not given.
        right_shift_logits: Whether row i of the logits predicts token i + 1; not for models from `load_pretrained`,
            which know.
        t: (B,) levels in (0, 1]; drawn where not given, as all that follow.
        rho: (B,) extra levels of the superset.
        component: `easy`, `random` or `hard`, one for all or one per document, or int64 (B,) of `Component`; where not
            given, what the method has at that level.
        mask_uniform: (B, L) uniforms in [0, 1) that mask.
        tie_uniform: (B, L) uniforms that choose at random.
        v: (B,) uniforms that round how many are kept; see `select_kept`.
        generator: Source of all draws.
        options: Further keys of the config's `objective` section, such as `scoring="approximate"` or `t_min=0.01`.

    Returns:
        A differentiable scalar; 0 where nothing is masked.

    Raises:
        ValueError: A level, a shape or an option is out of range, the method has no such option, an option needs the
            trainer, no mask token is known, or the model denoises block after block.
    """
    refuse_blockwise(getattr(model, "config", None), BLOCK_LOSS)
    objective = _own_objective(method, options)
    tokens = {"response_mask": response_mask, "attention_mask": attention_mask, "mask_uniform": mask_uniform}
    _check_shapes(clean_ids.shape, **tokens, tie_uniform=tie_uniform)
    _check_shapes(clean_ids.shape[:1], t=t, rho=rho, v=v)
    if not len(clean_ids):
        raise ValueError("clean_ids has no document; at least one is needed.")
    if attention_mask is not None and bool((response_mask.bool() & ~attention_mask.bool()).any()):
        raise ValueError("response_mask is true on padding, where attention_mask is false; clear it there.")
    wrapped = _as_diffusion_model(model, mask_token_id, right_shift_logits)
    kernel: Kernel = "sdpa"
    if not isinstance(wrapped, LogitsModel):
        kernel = choose_attention(wrapped.config, "auto", clean_ids.device, wrapped.dtype)
    root = DiffusionStep(wrapped, objective, kernel=kernel)

    def drawn(given: Tensor | None, *shape: int) -> Tensor:
        fresh = torch.rand(shape, generator=generator, device=generator.device if generator else clean_ids.device)
        return (fresh if given is None else given).to(clean_ids.device, torch.float32)

    (num_documents, length), t_min = clean_ids.shape, objective.settings.t_min
    u = narrowed(drawn(None, num_documents), t_min, objective.settings.t_max)
    if t is None:
        t = level_from_uniform(u, t_min)
    else:
        _check_levels(t)
        t = t.to(clean_ids.device, torch.float32)
        u = ((t - t_min) / (1 - t_min)).clamp(0, 1)
    extra, policy = drawn(None, num_documents), drawn(None, num_documents)
    batch = MicroBatch(
        clean_ids=clean_ids,
        attention_mask=torch.ones_like(response_mask) if attention_mask is None else attention_mask.bool(),
        response_mask=response_mask.bool(),
        filler_mask=torch.zeros_like(response_mask, dtype=torch.bool),
        mask_uniform=drawn(mask_uniform, *clean_ids.shape),
        tie_uniform=drawn(tie_uniform, *clean_ids.shape),
        t=t,
        rho=objective.extra_level(u, t, extra) if rho is None else rho.to(t),
        count_uniform=drawn(v, num_documents),
        component=objective.component(t, policy) if component is None else component_tensor(component, clean_ids),
        lengths=[length] * num_documents if attention_mask is None else attention_mask.bool().sum(-1).tolist(),
        sample_ids=list(range(num_documents)),
        slots=[(row, 0) for row in range(num_documents)],
        is_refreshed=torch.ones_like(t, dtype=torch.bool),
    )
    total = response_mask.sum().clamp(min=1) if num_targets is None else torch.as_tensor(num_targets)
    dropout_seed = torch.randint(2**31, (), generator=generator, device=generator.device if generator else None)
    with attention_kernels(kernel):
        loss, _ = root(batch, (1.0 / total.to(t)).expand(num_documents), (int(dropout_seed), 0))
    return cast(Tensor, loss)


def _own_objective(method: str, options: dict[str, Any]) -> Objective:
    for name, reason in TRAINERS_OPTIONS.items():
        if name in options:
            raise ValueError(f"{name}={options[name]!r}: only the trainer has it; {reason}.")
    try:
        objective = make_objective(objective_settings(method, **options))
    except ValidationError as error:
        raise ValueError(" ".join(map(_sentence, error.errors()))) from error
    if objective.reads_difficulty:
        raise ValueError(
            f"scoring={options.get('scoring', method)!r}: the table of difficulties is the trainer's; "
            "use exact or approximate."
        )
    return objective


def _sentence(details: ErrorDetails) -> str:
    if details["type"] == "value_error":
        return str(details["ctx"]["error"])
    name = str(details["loc"][0])
    if details["type"] == "extra_forbidden":
        methods = ", ".join(methods_with(name)) or "no method: misspelt?"
        return f"{name}={details['input']!r}: no argument, and no option of this method (of {methods})."
    return f"{refused_value(name, details)}."


def _as_diffusion_model(model: nn.Module, mask_token_id: int | None, right_shift_logits: bool) -> MaskedDiffusionModel:
    known = getattr(getattr(model, "config", None), "mask_token_id", None)
    if hasattr(type(model), "encode") and hasattr(type(model), "head"):  # a wrapper passes its model's attributes on
        if right_shift_logits or mask_token_id not in (None, known):
            raise ValueError(
                f"mask_token_id={mask_token_id}, right_shift_logits={right_shift_logits}: the model has its own, "
                f"mask_token_id={known} and aligned logits; remove them."
            )
        return cast(MaskedDiffusionModel, model)
    mask_id = known if mask_token_id is None else mask_token_id
    if mask_id is None:
        raise ValueError(f"{type(model).__name__} has no config.mask_token_id; give mask_token_id=...")
    return cast(MaskedDiffusionModel, LogitsModel(model, mask_id, right_shift_logits))


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
        ValueError: A level is outside (0, 1], or the model denoises block after block.
    """
    refuse_blockwise(model.config, BLOCK_LOSS)
    _check_levels(t)
    noised_ids = clean_ids.masked_fill(kept, model.config.mask_token_id)
    with attention_kernels("sdpa"):
        rows = model.encode(noised_ids, attention_mask)[kept]
    token_weights = (1.0 / t if time_scaling else torch.ones_like(t))[:, None].expand_as(clean_ids)
    token_weights = token_weights if weights is None else token_weights * weights
    gold_ids, row_weights = clean_ids[kept], token_weights[kept]
    loss, _ = model.head(rows, partial(chunked_weighted_nll, gold_ids=gold_ids, row_weights=row_weights))
    return loss / num_targets


def gift_loss(
    model: MaskedDiffusionModel,
    clean_ids: Tensor,
    response_mask: Tensor,
    t: Tensor,
    uniform: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """GIFT's loss of one batch, as the public code computes it; see `gift`, which the trainer uses.

    Sum over masked of CE / t_i, divided by the number masked. The mean entropy is taken over the batch.

    Args:
        model: A model from `load_pretrained`.
        clean_ids: int64 (B, L) true ids.
        response_mask: bool (B, L), the positions that may be masked.
        t: (B,) levels in (0, 1].
        uniform: (B, L) uniforms in [0, 1) that decide the mask; drawn where not given.
        generator: Source of those draws.

    Returns:
        A differentiable scalar; 0 where nothing is masked.

    Raises:
        ValueError: A level is outside (0, 1], or the model denoises block after block.
    """
    refuse_blockwise(model.config, BLOCK_LOSS)
    _check_levels(t)
    if uniform is None:
        uniform = torch.rand(clean_ids.shape, generator=generator, device=clean_ids.device)
    with torch.no_grad():
        hidden = model.encode(clean_ids.masked_fill(response_mask, model.config.mask_token_id))[response_mask]
        entropy = torch.zeros_like(uniform)
        entropy[response_mask] = model.head(hidden, chunked_entropy)
    levels = gift_levels(entropy, response_mask, t, over_batch=True)
    masked = response_mask & (uniform < levels)
    return sft_loss(model, clean_ids, masked, torch.ones_like(t), masked.sum().clamp(min=1), weights=1.0 / levels)


def _check_shapes(shape: torch.Size, **given: Tensor | None) -> None:
    for name, tensor in given.items():
        if tensor is not None and tensor.shape != shape:  # it might broadcast to another loss
            raise ValueError(f"{name} has the shape {tuple(tensor.shape)}; {tuple(shape)} is expected.")


def _check_levels(t: Tensor) -> None:
    if not bool(((t > 0) & (t <= 1)).all()):
        raise ValueError(f"t={t.tolist()}: levels must lie in (0, 1]; 1 is fully masked.")
