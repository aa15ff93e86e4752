"""What `--model_args` may say: which model, how answers are made, how likelihoods are estimated."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import ConfigDict, Field, ValidationError, model_validator

from lift_ds.sampling.block_rule import check_settings, own_block_size
from lift_ds.sampling.settings import Amount, Count, SamplingSettings, TopP, Unmasking, checked_settings
from lift_ds.section import refused_value

DEFAULT_BLOCK_LENGTH = 32


class HarnessSettings(Unmasking):
    """How a loaded model answers and scores; the names are those of `--model_args`, whose values are texts.

    Lengths, `temperature` and `top_p` that are not set follow each request of a task.
    """

    model_config = ConfigDict(strict=False)

    gen_length: Count | None = Field(None, description="tokens of an answer; default: the task's max_gen_toks")
    block_length: Count | None = Field(None, description="tokens of a block; default: 32 at most, or a model's own")
    steps: Count | None = Field(None, description="denoising steps in all, with gen_length; default: one a token")
    temperature: Amount | None = Field(None, description="0 is greedy; default: the task's")
    top_p: TopP | None = Field(None, description="draw from the fewest tokens of this probability; default: the task's")
    mc_num: int = Field(128, ge=2, description="masks of a likelihood estimate; fewer where all masks are fewer")
    check_greedy: bool = Field(True, description="whether is_greedy is found out; false reports false for all")
    batch_size: int = Field(16, ge=1, description="rows of one forward")
    max_length: int | None = Field(None, ge=2, description="longest sequence; default: the model's")
    on_long: Literal["error", "truncate"] = Field("error", description="what becomes of prompts that are too long")
    seed: int = Field(0, ge=0, description="of masks and of what is drawn")
    progress: str | None = Field(None, description="folder that keeps what is computed, to go on from after a cut")
    estimates: str | None = Field(None, description="JSON Lines to write: every likelihood with its standard error")

    @model_validator(mode="after")
    def _check_process(self) -> HarnessSettings:
        if self.steps is not None and self.gen_length is None:
            raise ValueError(f"steps={self.steps} needs gen_length: tasks ask for answers of different lengths.")
        self.process(256, 0.0, 1.0)
        return self

    def process(self, max_tokens: int, temperature: float, top_p: float) -> SamplingSettings:
        """How a request for at most so many tokens is answered; see `checked_settings` for errors."""
        block_length = self.block_length or min(DEFAULT_BLOCK_LENGTH, self.gen_length or max_tokens)
        gen_length = self.gen_length or -(-max_tokens // block_length) * block_length
        values = {"temperature": temperature, "top_p": top_p, "stop_early": True}
        values |= self.model_dump(include=set(SamplingSettings.model_fields), exclude_none=True)
        values |= {"gen_length": gen_length, "block_length": block_length}
        return checked_settings(**({} if self.is_adaptive else {"steps": gen_length}) | values)

    def for_model(self, config: Any) -> HarnessSettings:
        """The settings, with the blocks of a model that has its own, where none are named.

        Raises:
            ValueError: It cannot answer so.
        """
        own = own_block_size(config)
        if own is None:
            return self
        settings = self if self.block_length else self.model_copy(update={"block_length": own})
        check_settings(settings.process(256, 0.0, 1.0), config)
        return settings


class ModelArguments(HarnessSettings):
    """All of `--model_args`: the settings, and which model is loaded."""

    pretrained: str = Field(description="model folder, hub name or builtin:base")
    adapters: str | None = Field(None, description="folder of LoRA adapters in PEFT's format; they are not merged")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="of the weights; auto: as stored on a GPU, float32 on a CPU"
    )
    chat_template: str | None = Field(None, description="llada, chatml, llama3 or a jinja file; default: the model's")
    system: str | None = Field(None, description="system text of chats without one; default: the model's")


def read_arguments(values: Mapping[str, Any]) -> ModelArguments:
    """Checks `--model_args`, as lm-evaluation-harness parsed them.

    Raises:
        ValueError: Some are unknown, out of range or missing; one message names them all.
    """
    try:
        return ModelArguments.model_validate(dict(values))
    except ValidationError as error:
        problems = [describe(details) for details in error.errors()]
    fields = [f"  {name}: {field.description}" for name, field in ModelArguments.model_fields.items()]
    raise ValueError("--model_args: " + "; ".join(problems) + "\nallowed are\n" + "\n".join(fields))


def describe(details: Any) -> str:
    """One problem of pydantic's."""
    name = ".".join(map(str, details["loc"]))
    if details["type"] == "value_error":
        return str(details["ctx"]["error"])
    if details["type"] == "missing":
        return f"{name} is missing"
    if details["type"] == "extra_forbidden":
        close = difflib.get_close_matches(name, ModelArguments.model_fields, n=1)
        return f"{name} is unknown" + (f", did you mean {close[0]}?" if close else "")
    return refused_value(name, details)
