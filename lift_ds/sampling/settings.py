"""How answers are decoded: each setting's name, range, default and meaning, and what must hold between them.

Flags, `--model_args`, protocols, the run config and the arguments of `generate` are made of these.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

import numpy as np
from pydantic import AfterValidator, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from lift_ds.section import Section, refused_value

Remasking = Literal["low_confidence", "random", "entropy", "margin", "maskgit_plus"]
EosPolicy = Literal["allow", "last", "never"]
Cache = Literal["none", "prefix", "dual"]


def within(is_allowed: Callable[[Any], bool], words: str) -> AfterValidator:
    """A range, and how errors name it; comparisons refuse what is no number."""

    def check(value: Any) -> Any:
        if not is_allowed(value):
            raise PydanticCustomError("range", words)
        return value

    return AfterValidator(check)


Count = Annotated[int, within(lambda value: value >= 1, "at least 1")]
Amount = Annotated[float, within(lambda value: 0 <= value < math.inf, "0 or more")]
Probability = Annotated[float, within(lambda value: 0 <= value <= 1, "a probability, 0 to 1")]
Factor = Annotated[float, within(lambda value: value > 0, "above 0")]
TopP = Annotated[float, within(lambda value: 0 < value <= 1, "above 0, at most 1")]
GenLength = Annotated[Count, Field(description="most tokens of an answer")]
BlockLength = Annotated[Count, Field(description="tokens of a block, denoised before the next one begins")]
Steps = Annotated[Count, Field(description="denoising steps of an answer")]


class Lengths(Section):
    """How long answers are, and how many steps they take."""

    prefix: ClassVar[str] = ""  # what stands before the keys in messages
    gen_length: GenLength
    block_length: BlockLength
    steps: Count | None = Field(None, description="denoising steps of an answer; none with threshold or factor")

    @property
    def num_blocks(self) -> int:
        """Blocks of an answer."""
        return self.gen_length // self.block_length

    @model_validator(mode="after")
    def _check_lengths(self) -> Self:
        gen_length, block_length = f"gen_length={self.gen_length}", f"block_length={self.block_length}"
        if self.gen_length % self.block_length:
            raise ValueError(f"{self.prefix}{gen_length} must be a multiple of {self.prefix}{block_length}.")
        if self.steps is not None and self.steps % self.num_blocks:
            raise ValueError(
                f"{self.prefix}steps={self.steps} must be a multiple of the number of blocks, {self.num_blocks}."
            )
        return self


class FixedSteps(Lengths):
    """Where no confidence decides the number of steps."""

    steps: Steps


class Unmasking(Section):
    """What decides which predictions a step reveals, whatever the lengths."""

    threshold: Probability | None = Field(None, description="reveal all predictions that are at least so sure")
    factor: Factor | None = Field(None, description="reveal the n surest while (n + 1) (1 - confidence) is below it")
    remasking: Remasking = Field(
        "low_confidence",
        description="what ranks predictions: low_confidence, their p under the model (LLaDA); random; and after "
        "temperature and top-p (Dream) maskgit_plus, their p; margin, the first p less the next; entropy, the least",
    )
    cfg_scale: Amount = Field(0.0, description="classifier-free guidance against the masked prompt; 0 is off")
    cache: Cache = Field("none", description="keys and values kept within a block; faster, and an approximation")
    eos: EosPolicy = Field("allow", description="whether the end token may be predicted; last: after all others")

    @property
    def is_adaptive(self) -> bool:
        """Whether confidence decides how many tokens a step reveals."""
        return self.threshold is not None or self.factor is not None

    @model_validator(mode="after")
    def _check_unmasking(self) -> Self:
        if self.threshold is not None and self.factor is not None:
            raise ValueError(f"threshold={self.threshold} and factor={self.factor}: only one of them decides.")
        if self.is_adaptive and self.remasking in ("random", "entropy"):
            raise ValueError(f"remasking={self.remasking!r} gives no probabilities to hold against them.")
        if self.cache != "none" and self.cfg_scale > 0:
            raise ValueError(f"cache={self.cache!r} with cfg_scale={self.cfg_scale}: guidance keeps none; drop one.")
        return self


class SamplingSettings(Unmasking, Lengths):
    """All that decides an answer but model, prompt and draws."""

    temperature: Amount = Field(0.0, description="0 is greedy; else Gumbel noise in float64")
    top_p: TopP = Field(1.0, description="draw from the fewest tokens that have this probability together; 1 keeps all")
    stop_early: bool = Field(False, description="end an answer with the block in which its first end token stands")

    @model_validator(mode="after")
    def _check_steps(self) -> Self:
        if (self.steps is None) != self.is_adaptive:
            raise ValueError(
                f"steps={self.steps}, threshold={self.threshold}, factor={self.factor}: either the number of steps is "
                "fixed, or confidence decides it; give one of the three."
            )
        return self


def checked_settings(**values: Any) -> SamplingSettings:
    """Settings from a caller, whose errors are sentences.

    Raises:
        ValueError: A value is out of range or does not fit another; the message names all that are wrong.
    """
    try:
        plain = {name: value.item() if isinstance(value, np.generic) else value for name, value in values.items()}
        return SamplingSettings(**plain)
    except ValidationError as error:
        raise ValueError(" ".join(map(describe, error.errors()))) from error


def describe(details: ErrorDetails) -> str:
    """One problem of pydantic's: name, value, what is allowed."""
    if details["type"] == "value_error":
        return str(details["ctx"]["error"])
    name = str(details["loc"][0])
    if details["type"] == "literal_error":
        allowed = get_args(SamplingSettings.model_fields[name].annotation)
        return f"{name}={details['input']!r}: allowed are {', '.join(allowed)}."
    return f"{refused_value(name, details)}."
