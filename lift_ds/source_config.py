"""Parts of the run config that say where rows come from and which column holds what."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator

ROW_COLUMNS = (
    "messages",
    "prompt",
    "response",
    "reasoning",
    "answer",
    "text",
    "input_ids",
    "target_mask",
    "filler_mask",
)
ROW_FORMATS = (
    {"messages"},
    {"text"},
    {"prompt", "response"},
    {"prompt", "reasoning", "answer"},
    {"input_ids", "target_mask"},
    {"input_ids", "target_mask", "filler_mask"},
)


class Section(BaseModel):
    """A frozen part of the config that knows all its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=True)


class ColumnsConfig(Section):
    """Which column of a row holds what; none named means: detect a known format and say which."""

    messages: str | None = Field(None, description="list of {role, content}")
    role: str = Field("role", description="key of a message's role")
    content: str = Field("content", description="key of a message's text")
    prompt: str | None = Field(None, description="the user's text")
    response: str | None = Field(None, description="the assistant's text")
    reasoning: str | None = Field(None, description="wrapped as <reasoning>...</reasoning>, with columns.answer")
    answer: str | None = Field(None, description="wrapped as <answer>...</answer>, with columns.reasoning")
    text: str | None = Field(None, description="plain text without a template, all of it learned")
    input_ids: str | None = Field(None, description="list of token ids that are taken as they are")
    target_mask: str | None = Field(None, description="list of booleans, with columns.input_ids: which are learned")
    filler_mask: str | None = Field(None, description="which targets only fill up a response; none where not named")

    def named(self) -> dict[str, str]:
        """The columns that a row must have, by their meaning."""
        return {name: column for name in ROW_COLUMNS if (column := getattr(self, name)) is not None}

    @model_validator(mode="after")
    def check_combination(self) -> ColumnsConfig:
        """Checks that the named columns make a format, or that none is named."""
        if self.named() and set(self.named()) not in ROW_FORMATS:
            raise ValueError(
                f"data.columns: {sorted(self.named())} do not make a format; name messages, or text, or prompt and "
                "response, or prompt, reasoning and answer, or input_ids and target_mask (and filler_mask)"
            )
        return self


class SourceConfig(Section):
    """One part of a mixture."""

    path: str | list[str] = Field(description="as data.path")
    weight: float | None = Field(None, gt=0, description="share of the draws, relative to the other sources'")
    columns: ColumnsConfig = Field(ColumnsConfig(), description="as data.columns, which it falls back to")

    def paths(self) -> list[str]:
        """The path, or paths, as a list."""
        return [self.path] if isinstance(self.path, str) else self.path
