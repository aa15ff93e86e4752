"""One denoising step's choices: what each masked token becomes, how sure that is, and which are revealed now.

Shapes: B sequences, N positions of a block, V vocabulary rows.

Source: LLaDA's `generate` and Dream's `sample_tokens`. Both take confidences and top-p from the whole softmax, the mask
token included; LLaDA's `logits_eos_inf`, here `eos="never"`, takes the end token out of it.
Differs: the mask token is never predicted, as a position would stay masked for ever. Where it is not the likeliest,
greedy predictions and their confidences are theirs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .settings import Remasking, SamplingSettings

TIME_END = 1e-3  # where the reverse time of Dream's sampler ends
# One generator for a batch, or one for each of its rows: then a row's draws do not depend on the others.
Randomness = torch.Generator | Sequence[torch.Generator] | None


def predict(
    logits: Tensor, settings: SamplingSettings, mask_id: int, end_id: int, generator: Randomness = None
) -> tuple[Tensor, Tensor]:
    """The token that each position would become, and how sure that is; higher is surer.

    Args:
        logits: (B, N, V).
        settings: How tokens are drawn and ranked.
        mask_id: The mask token, which is never predicted but has its share of the probability.
        end_id: The end token of `settings.eos`.
        generator: Source of the randomness of `temperature` and `random`.

    Returns:
        int64 and float64, both (B, N).
    """
    if settings.eos == "never":
        logits = without(logits, end_id)
    likeliest = without(logits, mask_id).argmax(-1, keepdim=True)
    drawn_from = logits
    if settings.top_p < 1:  # the mask token may be all that top-p keeps
        kept = keep_top_p(logits, settings.top_p, settings.temperature)
        drawn_from = kept.scatter(-1, likeliest, logits.gather(-1, likeliest))
    predicted = likeliest[..., 0]
    if settings.temperature > 0:
        predicted = perturb(without(drawn_from, mask_id), settings.temperature, generator).argmax(-1)
    if settings.remasking == "random":
        confidence = uniforms(predicted, generator)
    elif settings.remasking == "low_confidence":
        confidence = logits.double().softmax(-1).gather(-1, predicted[..., None])[..., 0]
    else:
        probability = (drawn_from.double() / (settings.temperature or 1.0)).softmax(-1)
        confidence = dreams_confidence(probability, predicted, likeliest, settings.remasking)
    if settings.eos == "last":
        confidence = confidence.masked_fill(predicted == end_id, torch.finfo(confidence.dtype).min)
    return predicted, confidence


def without(logits: Tensor, token_id: int) -> Tensor:
    """Logits (B, N, V) with one token at -inf."""
    return logits.index_fill(-1, torch.tensor([token_id], device=logits.device), -torch.inf)


def dreams_confidence(probability: Tensor, predicted: Tensor, likeliest: Tensor, remasking: Remasking) -> Tensor:
    """What ranks the predictions by Dream's rules, float64 (B, N); see `Unmasking.remasking`.

    The probability, float64 (B, N, V), is that of every token, the mask token included; `predicted` is int64 (B, N),
    `likeliest`, the likeliest token but for the mask token, int64 (B, N, 1).
    """
    if remasking == "entropy":
        return torch.special.xlogy(probability, probability).sum(-1)
    if remasking == "margin":
        others = probability.scatter(-1, likeliest, 0.0).amax(-1)
        return probability.gather(-1, likeliest)[..., 0] - others
    return probability.gather(-1, predicted[..., None])[..., 0]


def keep_top_p(logits: Tensor, top_p: float, temperature: float) -> Tensor:
    """Logits with all but the fewest tokens of probability `top_p` at -inf; the likeliest one always stays."""
    ordered, order = (logits.double() / (temperature or 1.0)).sort(dim=-1, descending=True, stable=True)
    before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
    dropped = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before >= top_p)
    return logits.masked_fill(dropped, -torch.inf)


def perturb(logits: Tensor, temperature: float, generator: Randomness) -> Tensor:
    """Gumbel-max noise in float64, at a temperature above 0."""
    return logits.double().exp() / (-uniforms(logits, generator).log()) ** temperature


def uniforms(like: Tensor, generator: Randomness) -> Tensor:
    """Float64 numbers from [0, 1), as many as `like` (B, ...) has."""
    if generator is None or isinstance(generator, torch.Generator):
        return torch.rand(like.shape, dtype=torch.float64, device=like.device, generator=generator)
    rows = [torch.rand(like.shape[1:], dtype=torch.float64, device=like.device, generator=row) for row in generator]
    return torch.stack(rows)


def quota(num_masked: Tensor, step: int, steps: int, remasking: Remasking) -> Tensor:
    """How many tokens a step reveals where the number of steps is fixed: int64 like `num_masked`.

    Equal shares, the remainder in the first steps (LLaDA). The rules of Dream reveal floor(masked (1 - s / t)) instead,
    t and s the reverse time before and after the step, and what is left in the last one.

    Steps are counted from 0; `steps` are those of the block.
    """
    if remasking in ("low_confidence", "random"):
        return -(-num_masked // (steps - step))
    if step == steps - 1:
        return num_masked
    times = torch.linspace(1, TIME_END, steps + 1)
    return (num_masked * float(1 - times[step + 1] / times[step])).long()


def choose(confidence: Tensor, masked: Tensor, settings: SamplingSettings, step: int) -> Tensor:
    """Which of the positions that are still masked are revealed: bool (B, N), as `masked` is.

    The steps decide how many, or the confidence (B, N); then at least one in each row that has any. `step` is that of
    the block, from 0.
    """
    ordered, order = confidence.masked_fill(~masked, -torch.inf).sort(dim=-1, descending=True, stable=True)
    rank = order.argsort(-1)
    if settings.steps is not None:
        steps = settings.steps // settings.num_blocks
        return masked & (rank < quota(masked.sum(-1), step, steps, settings.remasking)[:, None])
    if settings.threshold is not None:
        return masked & ((confidence >= settings.threshold) | (rank == 0))
    number = torch.arange(1, confidence.shape[-1] + 1, device=confidence.device)
    fits = (number + 1) * (1 - ordered) < float(settings.factor or 0)
    return masked & (rank < fits.long().cumprod(-1).sum(-1).clamp(min=1)[:, None])
