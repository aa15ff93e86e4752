"""Where rows come from, which column holds what, and how they become tokens."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from lift_ds.section import Section

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


class DataConfig(Section):
    """What is read, and how it becomes tokens."""

    path: str | list[str] = Field(
        "builtin:reasoning",
        description="files (.jsonl, .json, .parquet, .arrow, .feather; .gz and .zst of the first two), globs, folders, "
        "URLs (s3://, hf://, https://), hub:owner/name[:config][@split] (split: train), or builtin:<name>",
    )
    sources: list[SourceConfig] | None = Field(
        None, description="a mixture, instead of data.path: entries of path, weight (all have one or none) and columns"
    )
    columns: ColumnsConfig = Field(ColumnsConfig(), description="column mapping; a path like trajectories.0 is allowed")
    system: str | None = Field(None, description="system text put before every conversation")
    chat_template: str | None = Field(
        None, description="llada, chatml, llama3 or the path of a jinja file; default: the model's own"
    )
    train_on: Literal["all", "last"] = Field("all", description="learn all assistant turns, or the last one")
    max_length: int | None = Field(
        None, ge=8, description="most tokens of a document; default: a pack's, or the model's maximum"
    )
    on_long: Literal["error", "skip", "truncate"] = Field("error", description="what happens to longer rows; counted")
    on_bad_row: Literal["error", "skip"] = Field(
        "error", description="what happens to rows that cannot be read or do not fit the columns; counted"
    )
    pad_targets: Literal["none", "one_eos", "all"] = Field(
        "one_eos", description="end tokens after the response: none, one, or up to pad_to_multiple, all learned"
    )
    pad_to_multiple: int = Field(
        1, ge=1, description="response length is filled to a multiple of this (pad_targets: all)"
    )
    packing: Literal["none", "best_fit"] = Field(
        "none", description="one row a slot of the global batch, or packs of rows that see only themselves"
    )
    pack_length: int | None = Field(None, ge=8, description="most tokens of a pack; default: the longest document's")
    workers: int = Field(0, ge=0, description="processes of each rank that read and tokenise ahead; 0: a thread")
    lanes: int = Field(
        64, ge=1, description="virtual streams of the sample order, fewer on small data; part of a run's identity"
    )
    window_chunks: int = Field(4, ge=1, description="chunks that are shuffled together")
    check_rows: int = Field(
        2000, ge=0, description="rows that are read and tokenised before training, to find bad ones"
    )
    builtin_rows: int = Field(30_000, ge=1, description="number of training rows of builtin data")
    builtin_seed: int = Field(0, ge=0, description="seed of builtin data")

    def source_list(self) -> list[SourceConfig]:
        """What is read: the mixture, or `path` as the only source."""
        return self.sources or [SourceConfig(path=self.path)]

    @model_validator(mode="after")
    def check_sources(self) -> DataConfig:
        """Checks that the rows have one home, and that a mixture is weighted throughout or not at all."""
        if self.sources is None:
            return self
        if "path" in self.model_fields_set:
            raise ValueError("data.path and data.sources are both set; remove one: data.sources takes paths too")
        if not self.sources:
            raise ValueError("data.sources=[]: at least one entry with a path, or remove it and set data.path")
        without = [", ".join(source.paths()) for source in self.sources if source.weight is None]
        if without and len(without) < len(self.sources):
            raise ValueError(f"data.sources: {without[0]} has no weight, others have; give all of them one, or none")
        return self
