"""What settings of decoding mean for models that denoise block after block, and which mean nothing there."""

from __future__ import annotations

from typing import Any

from lift_ds.models.blocks import check_block_size
from lift_ds.models.families import max_length_of
from lift_ds.models.registry import family_of, is_blockwise

from .settings import SamplingSettings

GREEDY = "answers are greedy"
# The one value that each of these settings may have, and why.
ONLY: dict[str, tuple[Any, str]] = {
    "temperature": (0.0, GREEDY),
    "top_p": (1.0, GREEDY),
    "factor": (None, "the steps or the threshold decide how many tokens a step reveals"),
    "remasking": ("low_confidence", "the surest predictions are revealed, by their p under the model"),
    "cfg_scale": (0.0, "there is no guidance"),
    "cache": ("none", "keys and values of finished blocks are kept anyway, which changes nothing"),
    "eos": ("allow", "the end token is predicted like every other"),
}


def block_rule(settings: SamplingSettings, config: Any, prefix: str = "") -> tuple[int, float | None]:
    """Steps of a block at most, and the threshold, if any, above which a prediction is revealed at once.

    A threshold alone leaves a step for each token.

    Args:
        settings: How answers are made.
        config: That of a model that denoises block after block.
        prefix: What stands before the settings' names in messages.

    Raises:
        ValueError: A setting means nothing here, or the blocks are not the model's; the message names all of them.
    """
    size, name = check_block_size(config), family_of(config).name
    problems = [
        f"{prefix}{key}={getattr(settings, key)}: {why}" + ("; remove it" if value is None else f"; set it to {value}")
        for key, (value, why) in ONLY.items()
        if getattr(settings, key) != value
    ]
    if settings.block_length != size:
        problems.insert(0, f"{prefix}block_length={settings.block_length}: set it to {size}, the model's own")
    if problems:
        raise ValueError(f"{name} denoises blocks of {size} tokens, one after the other. {'; '.join(problems)}.")
    steps = size if settings.steps is None else settings.steps // settings.num_blocks
    if steps > size:
        raise ValueError(
            f"{prefix}steps={settings.steps}: {steps} for each block of {name}, which has {size} tokens; at most "
            f"{size * settings.num_blocks} are needed for {prefix}gen_length={settings.gen_length}."
        )
    return steps, settings.threshold


def check_settings(settings: SamplingSettings, config: Any, prefix: str = "") -> None:
    """Whether a model, of any family, can answer so; see `block_rule`."""
    if is_blockwise(config):
        block_rule(settings, config, prefix)


def own_block_size(config: Any) -> int | None:
    """The block size of a model that has one of its own."""
    return check_block_size(config) if is_blockwise(config) else None


def longest_answered(config: Any) -> int:
    """The longest prompt with its answer, in tokens: all that the model was made for, in whole blocks of its own."""
    longest = max_length_of(config)
    return longest - longest % (own_block_size(config) or 1)
