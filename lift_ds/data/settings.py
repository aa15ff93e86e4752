"""Where rows come from, which column holds what, and how they become tokens."""

from __future__ import annotations

from datetime import date, datetime
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from lift_ds.section import Section

Reasoning = Literal["template", "think", "tags", "none"]
Columns = str | list[str] | None
# Combinations that make a format, and what may join each of them.
ROW_FORMATS = (
    ({"messages"}, {"system", "tools"}),
    ({"prompt", "response"}, {"system", "tools"}),
    ({"prompt", "reasoning", "answer"}, {"system", "tools"}),
    ({"text"}, set[str]()),
    ({"input_ids", "target_mask"}, {"filler_mask"}),
    ({"input_ids", "labels"}, {"attention_mask"}),
)
JOINED = "; a list of columns is joined by line breaks"


class ColumnsConfig(Section):
    """Which column of a row holds what; none named means: detect a known format and say which."""

    messages: str | None = Field(None, description="list of {role, content}, also as JSON text or a dict of lists")
    role: str = Field("role", description="key of a message's role")
    content: str = Field("content", description="key of a message's text")
    prompt: Columns = Field(None, description="the user's text, or messages" + JOINED)
    response: Columns = Field(None, description="the assistant's text, or messages" + JOINED)
    reasoning: Columns = Field(None, description="wrapped as <reasoning>...</reasoning>, with columns.answer")
    answer: Columns = Field(None, description="wrapped as <answer>...</answer>, with columns.reasoning")
    system: Columns = Field(None, description="the row's own system text, beside messages or prompt")
    tools: str | None = Field(None, description="list of tools for the chat template, also as JSON text")
    text: Columns = Field(None, description="plain text without a template, all of it learned" + JOINED)
    input_ids: str | None = Field(None, description="list of token ids that are taken as they are")
    target_mask: str | None = Field(None, description="list of booleans, with columns.input_ids: which are learned")
    filler_mask: str | None = Field(None, description="which targets only fill up a response; none where not named")
    labels: str | None = Field(None, description="with columns.input_ids, instead of target_mask: -100 is not learned")
    attention_mask: str | None = Field(None, description="with columns.labels: 0 is padding, which is taken off")

    def named(self) -> dict[str, str | list[str]]:
        """The columns that are named, by their meaning."""
        names = (name for name in type(self).model_fields if name not in ("role", "content"))
        return {name: column for name in names if (column := getattr(self, name)) is not None}

    def used(self) -> set[str]:
        """The outermost columns of a row that are read."""
        columns = (
            column for named in self.named().values() for column in ([named] if isinstance(named, str) else named)
        )
        return {column.split(".")[0] for column in columns}

    @model_validator(mode="after")
    def check_combination(self) -> ColumnsConfig:
        """Checks that the named columns make a format, or that none is named."""
        named = set(self.named())
        if named and not any(needed <= named <= needed | further for needed, further in ROW_FORMATS):
            raise ValueError(
                f"data.columns: {sorted(named)} do not make a format; name messages, or prompt and response, or "
                "prompt, reasoning and answer (and with these system, tools), or text, or input_ids and target_mask "
                "(and filler_mask), or input_ids and labels (and attention_mask)"
            )
        if [] in self.named().values():
            raise ValueError("data.columns: an empty list names no column; name at least one, or remove the key")
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
    system: str | None = Field(None, description="system text put before conversations that have none of their own")
    reasoning: Reasoning = Field(
        "template",
        description="where a message's thoughts (reasoning_content, thinking) go: where the chat template puts them; "
        "before the answer as <think>...</think>; with it in <reasoning> and <answer> tags; or nowhere",
    )
    ignore: list[str] = Field(
        [], description="columns and message keys that are meant to be left out, though they hold something that counts"
    )
    chat_template: str | None = Field(
        None, description="llada, chatml, llama3 or the path of a jinja file; default: the model's own"
    )
    clock: str | None = Field(
        None,
        description="time that a chat template with a clock shows, as 2026-01-31T12:00:00; default: the run's start",
    )
    dropped_text: Literal["error", "allow"] = Field(
        "error",
        description="what happens where the chat template leaves out a turn's text, as some do with old thoughts",
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
    micro_batch_tokens: int = Field(
        4096,
        ge=1,
        description="most tokens of a micro-batch, padding counted, but for a row or pack that is longer; where "
        'train_micro_batch_size_per_gpu is "auto" in the JSON',
    )
    workers: int = Field(0, ge=0, description="processes of each rank that read and tokenise ahead; 0: a thread")
    lanes: int = Field(
        64, ge=1, description="virtual streams of the sample order, fewer on small data; part of a run's identity"
    )
    window_chunks: int = Field(4, ge=1, description="chunks that are shuffled together")
    max_skipped: float = Field(
        0.05, ge=0, le=1, description="largest share of data.check_rows that may be skipped; more stops the run"
    )
    check_rows: int = Field(
        2000, ge=0, description="rows that are read and tokenised before training, to find bad ones"
    )
    builtin_rows: int = Field(30_000, ge=1, description="number of training rows of builtin data")
    builtin_seed: int = Field(0, ge=0, description="seed of builtin data")

    def source_list(self) -> list[SourceConfig]:
        """What is read: the mixture, or `path` as the only source."""
        return self.sources or [SourceConfig(path=self.path)]

    @field_validator("clock", mode="before")
    @classmethod
    def as_text(cls, clock: Any) -> Any:
        """YAML reads a time as one."""
        return clock.isoformat() if isinstance(clock, date) else clock

    @field_validator("clock")
    @classmethod
    def check_clock(cls, clock: str | None) -> str | None:
        """Checks that the clock shows a time."""
        if clock is not None:
            try:
                datetime.fromisoformat(clock)
            except ValueError:
                raise ValueError(f"data.clock={clock!r} is no time; write it as 2026-01-31T12:00:00") from None
        return clock

    @model_validator(mode="after")
    def check_ignored(self) -> DataConfig:
        """Checks that no column is both named and left out."""
        for columns in [self.columns, *(source.columns for source in self.sources or [])]:
            both = sorted(columns.used() & set(self.ignore))
            if both:
                raise ValueError(
                    f"data.columns names {', '.join(both)}, and data.ignore leaves it out; remove it from one of them"
                )
        return self

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
