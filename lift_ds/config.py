"""What is learned: the run config, from a recipe (YAML) and dotted command-line overrides.

How it runs (ZeRO stage, precision, micro-batch, clipping) is DeepSpeed's JSON, see `training.ds_config`. A number lives
in one of the two. All problems are collected and reported at once: key, value, what is allowed, what to do.
"""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from .checkpoint_config import CheckpointConfig, EvalConfig
from .source_config import ColumnsConfig, Section, SourceConfig

EXPONENT_NUMBER = re.compile(r"[0-9]+(\.[0-9]*)?[eE][+-]?[0-9]+")


class ModelConfig(Section):
    """Which model, and how it is set up."""

    path: str = Field("builtin:base", description="folder in the public layout, hub name, or builtin:base")
    from_scratch: bool = Field(False, description="new random weights; only config and tokenizer are read from path")
    gradient_checkpointing: bool = Field(False, description="recompute each block in backward instead of storing it")
    compile: bool = Field(False, description="torch.compile for each block; the first steps take longer, unpacked only")


class LoraConfig(Section):
    """Low-rank adapters instead of full fine-tuning; off while rank is 0."""

    rank: int = Field(0, ge=0, description="rank r of the adapters; 0 trains all weights")
    alpha: float = Field(256.0, gt=0, description="scale: the update is multiplied by alpha / rank")
    dropout: float = Field(0.05, ge=0, lt=1, description="dropout on the adapters' input")
    targets: list[str] = Field(
        ["q_proj", "k_proj", "v_proj"], min_length=1, description="names of the matrices that get adapters"
    )


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


class ObjectiveConfig(Section):
    """What the loss is."""

    method: str = Field(
        "lift3", description="vanilla, lift2, lift3, easy, hard, random (one component at every level) or gift"
    )
    policy: Literal["time", "random"] = Field("time", description="LIFT's component by level, or drawn uniformly")
    scoring: Literal["exact", "approximate", "buffer", "hybrid"] = Field(
        "exact", description="LIFT's scores: a pass of their own, the training pass, the buffers, or both together"
    )
    refresh_share: float = Field(
        0.125, ge=0, le=1, description="share of documents that buffer and hybrid scoring still score exactly"
    )
    warm_start_steps: int = Field(50, ge=0, description="first steps in which they score every document exactly")
    scoring_precision: Literal["model", "bf16"] = Field("model", description="type of the scoring pass's products")
    complementary: bool = Field(False, description="also learn, in the same forward, what the mask left out, at 1 - t")
    token_weight: Literal["none", "cart", "mgdm"] = Field(
        "none", description="further weight of a token: CART's context weight, or MGDM's reweighting by its loss"
    )
    cart_p: float = Field(0.1, gt=0, le=1, description="parameter of CART's geometric kernel")
    mgdm_alpha: float = Field(0.25, gt=0, description="alpha of MGDM's alpha (1 - exp(-l))^gamma l")
    mgdm_gamma: float = Field(2.0, ge=0, description="gamma of the same")
    time_scaling: bool = Field(True, description="divide each token's loss by its level t")
    t_min: float = Field(1e-3, gt=0, lt=1, description="smallest level; bounds the weight 1/t")
    t_sampling: Literal["iid", "stratified"] = Field(
        "stratified", description="independent levels, or spread evenly over the global batch"
    )
    rho: Literal["code", "paper"] = Field("code", description="rule of LIFT's extra level rho")
    random_weight: float = Field(3.0, gt=0, description="c of LIFT-3: how wide the random middle is")
    normalizer: Literal["response_tokens", "masked_tokens", "per_example", "reference"] = Field(
        "response_tokens", description="what the step's summed loss is divided by, over all ranks and micro-batches"
    )


class DifficultyConfig(Section):
    """The table of how hard each token is at each mask level."""

    enabled: bool = Field(True, description="keep the table; buffer and hybrid scoring need it")
    decay: float = Field(0.999, gt=0, le=1, description="factor of a step; 1 never forgets")
    sync_every: int = Field(20, ge=1, description="steps between exchanges of the ranks")


class OptimConfig(Section):
    """AdamW and its schedule."""

    steps: int = Field(1000, ge=1, description="optimizer steps of the whole run")
    global_batch: int = Field(8, ge=1, description="documents of one step, over all ranks and micro-batches")
    lr: float = Field(5e-6, gt=0, description="peak learning rate")
    schedule: Literal["linear", "cosine", "constant"] = Field("linear", description="course after the warm-up")
    warmup_ratio: float = Field(0.0, ge=0, lt=1, description="share of the steps with linear warm-up")
    min_lr_ratio: float = Field(0.0, ge=0, le=1, description="final learning rate over the peak (linear, cosine)")
    weight_decay: float = Field(0.1, ge=0, description="decoupled weight decay of matrices; norms have none")
    beta1: float = Field(0.9, ge=0, lt=1, description="decay of the first moment")
    beta2: float = Field(0.999, ge=0, lt=1, description="decay of the second moment")
    eps: float = Field(1e-8, gt=0, description="AdamW's epsilon")
    max_bad_steps: int = Field(
        3, ge=0, description="steps with a NaN or infinite loss or gradient that are left out before the run ends"
    )


class RunConfig(Section):
    """A whole run."""

    model: ModelConfig = Field(ModelConfig(), description="")
    lora: LoraConfig = Field(LoraConfig(), description="")
    data: DataConfig = Field(DataConfig(), description="")
    objective: ObjectiveConfig = Field(ObjectiveConfig(), description="")
    difficulty: DifficultyConfig = Field(DifficultyConfig(), description="")
    optim: OptimConfig = Field(OptimConfig(), description="")
    checkpoint: CheckpointConfig = Field(CheckpointConfig(), description="")
    eval: EvalConfig = Field(EvalConfig(), description="")
    seed: int = Field(42, ge=0, description="seed of noise, order and new weights")
    output: str = Field("auto", description="run folder; auto: the next free number below runs/")
    log_every: int = Field(1, ge=1, description="steps between lines in metrics.jsonl and the display")

    @model_validator(mode="after")
    def check_numbers_fit(self) -> RunConfig:
        """Checks that hold between keys."""
        length, block, steps = self.eval.gen_length, self.eval.block_length, self.eval.steps
        if length % block:
            raise ValueError(f"eval.gen_length={length}: must be a multiple of eval.block_length={block}")
        if steps % (length // block):
            raise ValueError(f"eval.steps={steps}: must be a multiple of the number of blocks, {length // block}")
        if self.checkpoint.best_by == "heldout_loss" and not self.eval.rows:
            raise ValueError(
                "checkpoint.best_by=heldout_loss: needs held-out rows, and eval.rows=0 turns them off; set eval.rows, "
                "or checkpoint.best_by=solve_rate or none"
            )
        return self


class ConfigError(ValueError):
    """Everything that is wrong with a configuration, one problem a line."""

    def __init__(self, problems: list[str]) -> None:
        """Joins the problems into one message."""
        self.problems = problems
        count = f"{len(problems)} problem{'s' if len(problems) != 1 else ''}"
        super().__init__(f"{count} in the configuration:\n" + "\n".join(f"  - {problem}" for problem in problems))


def load_run_config(
    recipe: Path | None, overrides: list[str], flags: dict[str, Any] | None = None
) -> tuple[RunConfig, list[str]]:
    """Resolves a recipe, flags and overrides; later ones win.

    Args:
        recipe: YAML file, or `None` for the defaults.
        overrides: `section.key=value` strings; values are read as YAML.
        flags: Values by dotted key, taken as they are.

    Returns:
        The config and what is wrong with it. Where something is, the wrong values are defaults in it, so that the
        rest can still be checked; it must not be run.
    """
    values, problems = read_recipe(recipe)
    for key, value in (flags or {}).items():
        problems += set_dotted(values, key, value)
    for override in overrides:
        key, found, text = override.partition("=")
        if not found or not key:
            problems.append(f"{override!r}: an override has the form section.key=value, for example optim.steps=300")
            continue
        problems += set_dotted(values, key, parse_scalar(text))
    while True:
        try:
            return RunConfig.model_validate(values), problems
        except ValidationError as error:
            problems += [line for details in error.errors() for line in describe(details)]
            before = copy.deepcopy(values)
            for details in error.errors():
                is_check = details["type"] == "value_error"
                if is_check and details["loc"] == ("checkpoint",):  # the check of that section is about these two
                    for key in ("best_by", "export"):
                        values["checkpoint"].pop(key, None)
                else:
                    remove(values, details["loc"] or ("eval",))  # the checks between sections are about eval
            if values == before:
                return RunConfig(), problems


def remove(values: dict[str, Any], place: tuple[int | str, ...]) -> None:
    """Removes the innermost key of nested dictionaries that `place` leads to."""
    owner, key = values, place[0]
    for part in place[1:]:
        inner = owner.get(str(key))
        if not isinstance(inner, dict) or part not in inner:
            break
        owner, key = inner, part
    owner.pop(str(key), None)


def read_recipe(recipe: Path | None) -> tuple[dict[str, Any], list[str]]:
    """The values of a YAML file, and what is wrong with it."""
    if recipe is None:
        return {}, []
    try:
        loaded = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    except OSError as error:
        return {}, [f"--config {recipe}: cannot be read: {error.strerror}"]
    except yaml.YAMLError as error:
        return {}, [f"--config {recipe}: not YAML: {error}"]
    if loaded is None:
        return {}, [f"--config {recipe}: is empty"]
    if not isinstance(loaded, dict):
        return {}, [f"--config {recipe}: holds a {type(loaded).__name__}; sections like 'optim:' are expected"]
    return float_strings(loaded), []


def parse_scalar(text: str) -> Any:
    """A command-line value: YAML, where 5e-6 is a number too."""
    try:
        return float_strings(yaml.safe_load(text))
    except yaml.YAMLError:
        return text


def float_strings(value: Any) -> Any:
    """Reads 5e-6 as a number: YAML 1.1 takes it for a string unless it has a dot."""
    if isinstance(value, dict):
        return {key: float_strings(entry) for key, entry in value.items()}
    return float(value) if isinstance(value, str) and EXPONENT_NUMBER.fullmatch(value) else value


def set_dotted(values: dict[str, Any], key: str, value: Any) -> list[str]:
    """Sets `a.b.c` in nested dictionaries; returns what is wrong."""
    *sections, name = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            return [f"{key}: {section} is a value, not a section"]
    values[name] = value
    return []


def describe(details: ErrorDetails) -> list[str]:
    """One problem of pydantic's as lines: key, value, allowed, remedy."""
    key = ".".join(str(part) for part in details["loc"] if part not in ("str", "list[str]"))
    if details["type"] == "extra_forbidden":
        close = difflib.get_close_matches(key, known_keys(), n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}?" if close else "see --help for all keys"
        return [f"{key}: unknown key; {hint}"]
    if details["type"] == "value_error":
        return [str(details["ctx"]["error"])]
    return [f"{key}={details['input']!r}: {details['msg'][0].lower()}{details['msg'][1:]} ({help_of(key)})"]


def walk_fields(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf key with its pydantic field, in order."""
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from walk_fields(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name, field


def known_keys() -> list[str]:
    """Every dotted key."""
    return [key for key, _ in walk_fields(RunConfig)]


def help_of(key: str) -> str:
    """What a key means."""
    return next((field.description or "" for known, field in walk_fields(RunConfig) if known == key), "see --help")


def explain_keys() -> str:
    """All keys with type, default and meaning, for `--help`."""
    lines = []
    for key, field in walk_fields(RunConfig):
        annotation = str(field.annotation if not isinstance(field.annotation, type) else field.annotation.__name__)
        kind = annotation.removeprefix("typing.").replace("Literal", "one of ")
        lines.append(f"  {key}  ({kind}; default {field.default!r})\n      {field.description}")
    return "\n".join(lines)
