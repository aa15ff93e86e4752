"""What a run that goes on may change: each key's rule, and the record of the run beside what is given.

Every setting is that of the record (`run.json`). A value that is given and differs is free, or needs to be meant
(`--change KEY`), or cannot be: what is on disk would mean something else, or nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from lift_ds.objectives import OBJECTIVES
from lift_ds.section import flat, hint_at

from .deepspeed import PERFORMANCE
from .loading import known_keys, set_dotted
from .run import RunConfig

JSON_PREFIX = "deepspeed."
MISSING = "not set"


class Rule(Enum):
    """What a resumed run may do with a key."""

    FREE = "free"  # it may differ; it is listed
    NAMES = "names"  # it names files, which are compared instead: it is free where they are the same
    MEANT = "meant"  # it changes what is learned: `--change` says that it is meant
    FIXED = "fixed"  # what the run left on disk rests on it


POSITION = "the position in the data rests on it"
SHAPES = "the checkpoint's weights and optimizer state have its shapes"
# Of every key of the run config; one that ends in a dot stands for a whole section.
FREE = (
    *("optim.steps", "output", "log_every", "eval.", "runtime.", "checkpoint.", "data.workers", "data.check_rows"),
    *("data.max_skipped", "model.gradient_checkpointing", "model.checkpoint_layers", "model.attention"),
    *("model.kernels", "model.compile", "model.warm_up", "model.peak_tflops", "model.profile_steps"),
    "data.micro_batch_tokens",
)
NAMES = ("model.path", "data.path", "data.sources", "data.chat_template")
MEANT = (
    *("optim.global_batch", "optim.lr", "optim.schedule", "optim.warmup_ratio", "optim.min_lr_ratio"),
    *("optim.weight_decay", "optim.beta1", "optim.beta2", "optim.eps", "optim.max_bad_steps"),
    "optim.skip_above",
    *("objective.", "difficulty.decay", "difficulty.sync_every", "lora.alpha", "lora.dropout"),
    *("data.on_long", "data.on_bad_row", "model.router_aux_loss"),
)
FIXED = {
    "seed": "order, noise and held-out rows follow from it",
    "model.from_scratch": "the weights are the checkpoint's",
    "model.freeze_router": SHAPES,
    "lora.rank": SHAPES,
    "lora.targets": SHAPES,
    "difficulty.enabled": "the table would be lost, or is not there",
    **dict.fromkeys(("data.lanes", "data.window_chunks", "data.packing", "data.pack_length"), POSITION),
    **dict.fromkeys(("data.builtin_rows", "data.builtin_seed"), "they are the data"),
    "data.columns.": "rows that wait in open packs would be read as others",
    "data.max_length": POSITION,
    "data.sources": "weights and columns of a mixture are part of the order",
    **dict.fromkeys(
        (
            *("data.system", "data.reasoning", "data.ignore", "data.clock", "data.dropped_text", "data.train_on"),
            *("data.pad_targets", "data.pad_to_multiple"),
        ),
        "the tokens of every row follow from it",
    ),
}
LOSSY_ZERO = ("zero_optimization.zero_quantized_", "zero_optimization.zeropp_")
DEEPSPEED_DEFAULTS = {"gradient_clipping": 1.0, "bf16.check_grad_overflow": True}  # of 0.19.8, where a JSON has none
DERIVED = ("train_batch_size", "gradient_accumulation_steps")  # of the batch, the micro-batch and the ranks


def is_in(key: str, entries: Collection[str]) -> str | None:
    """The entry that stands for a key, itself or its section."""
    return next((entry for entry in entries if key == entry or (entry.endswith(".") and key.startswith(entry))), None)


def rule_of(key: str) -> Rule | None:
    """The rule of a key of the run config or, behind `deepspeed.`, of DeepSpeed's JSON; `None` where it has none."""
    if key.startswith(JSON_PREFIX):
        return Rule.MEANT if is_learnings(key.removeprefix(JSON_PREFIX)) else Rule.FREE
    rules = ((FREE, Rule.FREE), (NAMES, Rule.NAMES), (MEANT, Rule.MEANT), (tuple(FIXED), Rule.FIXED))
    return next((rule for entries, rule in rules if is_in(key, entries)), None)


def is_learnings(key: str) -> bool:
    """Whether a key of DeepSpeed's JSON changes what is learned."""
    return key.split(".")[0] not in PERFORMANCE or key.startswith(LOSSY_ZERO)


@dataclass(frozen=True)
class Change:
    """A key whose value is not the recorded one."""

    key: str
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.key}: {shown(self.before)} -> {shown(self.now)}"


def shown(value: Any) -> str:
    """A value as recipes have it."""
    if value is None:
        return "none"
    return str(value).lower() if isinstance(value, bool) else str(value)


def overlay(recorded: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """A recorded run config with given values in their places, to be checked as one.

    Where a run is written and what it starts from are not its record's. The two homes of the rows exclude each other,
    and of the recorded objective the options stay that the given method has.
    """
    values = copy.deepcopy(dict(recorded))
    values.pop("output", None)
    values.get("checkpoint", {}).pop("resume", None)
    asked = {key: given[key] if isinstance(given.get(key), dict) else {} for key in ("data", "objective")}
    data = values.get("data", {})
    if "path" in asked["data"] or ("sources" not in asked["data"] and not data.get("sources")):
        data.pop("sources", None)
    else:
        data.pop("path", None)
    method = asked["objective"].get("method")
    if isinstance(method, str) and method in OBJECTIVES:
        options = OBJECTIVES[method].settings_type.model_fields
        values["objective"] = {key: value for key, value in values.get("objective", {}).items() if key in options}
    return merged(values, given)


def merged(values: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dictionaries, where the second one's values win."""
    joined = dict(values)
    for key, value in given.items():
        inner = joined.get(key)
        joined[key] = merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return joined


def find_changes(before: RunConfig, now: RunConfig) -> list[Change]:
    """The keys in which two configs differ, but for where they are written and what they start from."""
    return differing(flat(before.model_dump()), flat(now.model_dump()), skipped=("output", "checkpoint.resume"))


def differing(before: Mapping[str, Any], now: Mapping[str, Any], skipped: Collection[str] = ()) -> list[Change]:
    """The keys in which flat settings differ, in order."""
    pairs = ((key, before.get(key, MISSING), now.get(key, MISSING)) for key in dict.fromkeys([*before, *now]))
    return [Change(*pair) for pair in pairs if pair[1] != pair[2] and pair[0] not in skipped]


def inherit_json(loaded: dict[str, Any], recorded: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """DeepSpeed's JSON with the record's values of learning's keys where it has none, each with a line, or "auto"."""
    inherited = copy.deepcopy(loaded)
    if "bfloat16" in inherited:
        inherited["bf16"] = inherited.pop("bfloat16")
    given, lines = flat(inherited), []
    for key, value in flat(recorded).items():
        if not is_learnings(key) or given.get(key, "auto") != "auto":
            continue
        if key not in given and key != "bf16.enabled":
            if not value:
                continue
            lines.append(f"{JSON_PREFIX}{key}: {shown(value)}, as recorded")
        set_dotted(inherited, key, value)
    return inherited, lines


def find_json_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """The same of DeepSpeed's JSON; "auto", which is filled in later, differs from nothing, a default from not set."""
    sides = [DEEPSPEED_DEFAULTS | flat(side) for side in (before, now)]
    skipped = [*DERIVED, *(key for side in sides for key, value in side.items() if value == "auto")]
    return [
        Change(f"{JSON_PREFIX}{change.key}", change.before, change.now)
        for change in differing(sides[0], sides[1], skipped)
        if any(value and value != MISSING for value in (change.before, change.now))  # false is as good as not set
    ]


def without_paths(sources: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
    """A mixture without what its entries name."""
    return sources and [{key: value for key, value in source.items() if key != "path"} for source in sources]


@dataclass(frozen=True)
class Meaning:
    """What the command line says of changes.

    Args:
        given: Where each key was given: nothing for the command line, or the file.
        meant: Keys of `--change`.
        has_steps: Whether the run left a checkpoint; before that nothing rests on any key.
    """

    given: Mapping[str, str]
    meant: Collection[str]
    has_steps: bool

    def problem(self, change: Change) -> str | None:
        """Why a change is refused, and what to do; `None` where it is not."""
        rule = rule_of(change.key)
        if change.key == "data.sources" and without_paths(change.before) != without_paths(change.now):
            rule = Rule.FIXED
        if change.key not in self.given or rule is Rule.FREE or (rule is Rule.NAMES and self.has_steps):
            return None
        where = self.given[change.key]
        if rule is Rule.FIXED and self.has_steps:
            reason = FIXED[str(is_in(change.key, FIXED))]
            return f"{change}{where}: cannot change in a run that goes on ({reason}); remove it, or start a new run"
        if change.key in self.meant:
            return None
        kept = f"the run goes on with {shown(change.before)}"
        return f"{change}{where}: {kept}; remove it, or mean it: --change {change.key}"

    def misnamed(self, changes: Collection[Change]) -> Iterator[tuple[bool, str]]:
        """What is to be said of `--change`: whether it is wrong, and the line."""
        differ, known = {change.key for change in changes}, [*known_keys(), *self.given]
        for key in self.meant:
            flag = f"--change {key}"
            if key not in known and not key.startswith(JSON_PREFIX):
                yield True, f"{flag}: unknown key; {hint_at(key, known, 'see --help for all keys')}"
            elif key not in self.given and rule_of(key) is not Rule.NAMES:  # those may have changed where they are
                in_json = f"write {key.removeprefix(JSON_PREFIX)} into the JSON"
                remedy = in_json if key.startswith(JSON_PREFIX) else f"add {key}=VALUE"
                yield True, f"{flag}: no value is given; {remedy}, or remove the flag"
            elif key not in differ:
                yield False, f"{flag}: nothing to change, the run has this value already"
