"""How answers are decoded: each setting's name, range, default and meaning, and what must hold between them.

Flags, `--model_args`, protocols, the run config and the arguments of `generate` are made of these.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import AfterValidator, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from lift_ds.section import Section

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
Probability = Annotated[float, within(lambda value: 0 <= value <= 1, "a probability, 0 to 1")]
Factor = Annotated[float, within(lambda value: value > 0, "above 0")]
Temperature = Annotated[float, within(lambda value: 0 <= value < math.inf, "0 (greedy) or more")]
TopP = Annotated[float, within(lambda value: 0 < value <= 1, "above 0, at most 1")]
Guidance = Annotated[float, within(lambda value: 0 <= value < math.inf, "0 (off) or more")]
GenLength = Annotated[Count, Field(description="most tokens of an answer")]
BlockLength = Annotated[Count, Field(description="tokens of a block, denoised before the next one begins")]
Steps = Annotated[Count, Field(description="denoising steps of an answer")]


class Lengths(Section):
    """Where the number of steps is fixed."""

    prefix: ClassVar[str] = ""
    """What stands before the keys in messages."""

    gen_length: GenLength
    block_length: BlockLength
    steps: Steps

    @model_validator(mode="after")
    def check_lengths(self) -> Self:
        """Checks that lengths and steps divide."""
        check_division(self.gen_length, self.block_length, self.steps, self.prefix)
        return self


class Unmasking(Section):
    """What decides which predictions are revealed, whatever the lengths."""

    threshold: Probability | None = Field(
        None, description="reveal all predictions that are at least so sure, instead of a fixed number (Fast-dLLM)"
    )
    factor: Factor | None = Field(
        None, description="reveal the n surest, for the largest n with (n + 1) (1 - confidence of the n-th) below this"
    )
    remasking: Remasking = Field(
        "low_confidence",
        description="what ranks predictions: low_confidence, their p under the model (LLaDA); random; and after "
        "temperature and top-p (Dream) maskgit_plus, their p; margin, the first p less the next; entropy, the least",
    )
    cfg_scale: Guidance = Field(0.0, description="classifier-free guidance against the masked prompt; 0 is off")
    cache: Cache = Field(
        "none",
        description="keys and values that later steps of a block take from its first: those of the prefix, or of all "
        "but the block (dual); faster, and an approximation",
    )
    eos: EosPolicy = Field("allow", description="whether the end token may be predicted; last: after all others")

    @property
    def is_adaptive(self) -> bool:
        """Whether confidence decides how many tokens a step reveals."""
        return self.threshold is not None or self.factor is not None

    @model_validator(mode="after")
    def check_unmasking(self) -> Self:
        """Checks what makes no sense together."""
        if self.threshold is not None and self.factor is not None:
            raise ValueError(f"threshold={self.threshold} and factor={self.factor}: only one of them decides.")
        if self.is_adaptive and self.remasking in ("random", "entropy"):
            raise ValueError(f"remasking={self.remasking!r} gives no probabilities to hold against them.")
        if self.cache != "none" and self.cfg_scale > 0:
            raise ValueError(f"cache={self.cache!r} with cfg_scale={self.cfg_scale}: guidance keeps none; drop one.")
        return self


class SamplingSettings(Unmasking):
    """All that decides an answer but model, prompt and draws."""

    gen_length: GenLength
    block_length: BlockLength
    steps: Count | None = Field(None, description="denoising steps in all; none with threshold or factor")
    temperature: Temperature = Field(0.0, description="0 is greedy; else Gumbel noise in float64")
    top_p: TopP = Field(1.0, description="draw from the fewest tokens that have this probability together; 1 keeps all")
    stop_early: bool = Field(False, description="end an answer with the block in which its first end token stands")

    @property
    def num_blocks(self) -> int:
        """Blocks of an answer."""
        return self.gen_length // self.block_length

    @property
    def steps_per_block(self) -> int | None:
        """Denoising steps of a block; `None` where confidence decides."""
        return None if self.steps is None else self.steps // self.num_blocks

    @model_validator(mode="after")
    def check_steps(self) -> Self:
        """Checks that lengths and steps divide, and that one thing decides the number of steps."""
        check_division(self.gen_length, self.block_length, self.steps)
        if (self.steps is None) != self.is_adaptive:
            raise ValueError(
                f"steps={self.steps}, threshold={self.threshold}, factor={self.factor}: either the number of steps is "
                "fixed, or confidence decides it; give one of the three."
            )
        return self


def check_division(gen_length: int, block_length: int, steps: int | None, prefix: str = "") -> None:
    """Checks that blocks divide the answer, and the number of blocks the steps.

    Raises:
        ValueError: One does not.
    """
    num_blocks, rest = divmod(gen_length, block_length)
    if rest:
        raise ValueError(f"{prefix}gen_length={gen_length} must be a multiple of {prefix}block_length={block_length}.")
    if steps is not None and steps % num_blocks:
        raise ValueError(f"{prefix}steps={steps} must be a multiple of the number of blocks, {num_blocks}.")


def checked_settings(**values: Any) -> SamplingSettings:
    """Settings from a caller, whose errors are sentences.

    Raises:
        ValueError: A value is out of range or does not fit another; the message names all that are wrong.
    """
    try:
        return SamplingSettings(**values)
    except ValidationError as error:
        raise ValueError(" ".join(map(describe, error.errors()))) from error


def describe(details: ErrorDetails) -> str:
    """One problem of pydantic's: name, value, what is allowed."""
    if details["type"] == "value_error":
        return str(details["ctx"]["error"])
    name = str(details["loc"][0])
    words = f"{details['msg'][0].lower()}{details['msg'][1:]}"
    if details["type"] == "literal_error":
        words = f"allowed are {', '.join(get_args(SamplingSettings.model_fields[name].annotation))}"
    return f"{name}={details['input']!r}: {words}."
