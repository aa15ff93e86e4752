"""How it runs: DeepSpeed's JSON, read strictly, with every "auto" filled from the run config.

DeepSpeed itself takes a misspelt top-level key for no key, and "auto" for bf16 as false. Here both are settled before
DeepSpeed sees them, and a number that stands in both files with different values is an error that names both places.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from lift_ds.models.layer_sizes import LayerSizes
from lift_ds.section import flat, hint_at
from lift_ds.text_files import BadKeyError, load_json, read_text

from .run import RunConfig
from .training import OptimConfig

# Keys that change how fast a run is, what it prints, or how its work is cut. All others are learning's.
PERFORMANCE = frozenset(
    """activation_checkpointing aio autotuning checkpoint comet comms_logger compile csv_monitor dataloader_drop_last
    disable_allgather dump_state flops_profiler gradient_accumulation_steps memory_breakdown nebula steps_per_print
    tensorboard timers train_batch_size train_micro_batch_size_per_gpu wall_clock_breakdown wandb
    zero_allow_untested_optimizer zero_force_ds_cpu_optimizer zero_optimization""".split()
)
KNOWN_KEYS = PERFORMANCE.union(
    """bf16 bfloat16 communication_data_type compression_training curriculum_learning data_efficiency data_types
    elasticity fp16 gradient_clipping gradient_predivide_factor optimizer prescale_gradients scheduler
    seq_parallel_communication_data_type sparse_gradients torch_autocast""".split()
)
SECTIONS = ("bf16", "bfloat16", "fp16", "data_types", "optimizer")
ADAM_TYPES = ("AdamW", "Adam")
NO_NVME = {
    "offload_param": "weights are read into memory",
    "offload_optimizer": "checkpoints would keep it as swap files, which are neither resumed nor exported from",
}
DEFAULT_PERSISTENCE = 100_000  # DeepSpeed's, in elements
SCATTER, HPZ = "reduce_scatter", "zero_hpz_partition_size"
PERSISTENCE, PREFETCH, REDUCE = (
    "stage3_param_persistence_threshold",
    "stage3_prefetch_bucket_size",
    "reduce_bucket_size",
)
MICRO_BATCH, ACCUMULATION, BATCH = "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "train_batch_size"
NOT_FILLED_HERE = {
    MICRO_BATCH,
    ACCUMULATION,
    "bf16.enabled",
    *(f"zero_optimization.{key}" for key in (PERSISTENCE, PREFETCH, REDUCE)),
}


def read_ds_json(path: Path) -> tuple[dict[str, Any], list[str]]:
    """The JSON of `--deepspeed`, and what is wrong with it."""
    try:
        loaded = load_json(read_text(path))
    except OSError as error:
        return {}, [f"--deepspeed {path}: cannot be read: {error.strerror}; ds_configs/ holds ready ones"]
    except ValueError as error:
        return {}, [f"--deepspeed {path}: {'' if isinstance(error, BadKeyError) else 'not JSON: '}{error}"]
    if not isinstance(loaded, dict):
        return {}, [f"--deepspeed {path}: holds a {type(loaded).__name__}; an object is expected"]
    hints = {key: hint_at(key, KNOWN_KEYS, "see DeepSpeed's configuration page") for key in set(loaded) - KNOWN_KEYS}
    problems = [f"{path}: unknown key {key!r}; DeepSpeed would ignore it; {hints[key]}" for key in sorted(hints)]
    zero = loaded.get("zero_optimization")
    if not isinstance(zero, dict) or zero.get("stage") not in (1, 2, 3):
        problems.append(f"{path}: zero_optimization.stage must be 1, 2 or 3; DeepSpeed would take nothing for 0")
    no_objects = [key for key in SECTIONS if not isinstance(loaded.get(key, {}), dict)]
    problems += [f"{path}: {key}={loaded[key]!r}: an object is expected" for key in no_objects]
    if isinstance(loaded.get("fp16"), dict) and loaded["fp16"].get("enabled") not in (None, False):
        problems.append(f"{path}: fp16.enabled: only bf16 and float32 are supported; remove it and use bf16")
    return loaded, problems


def resolve_ds_json(
    loaded: dict[str, Any],
    path: Path,
    config: RunConfig,
    world_size: int,
    model: PretrainedConfig,
    has_bf16: bool,
    node_size: int | None = None,
) -> tuple[dict[str, Any], list[str]]:
    """Fills "auto" and checks the numbers that both files hold: `settle_ds_json`, then `fill_ds_json`."""
    settled, problems = settle_ds_json(loaded, path, config, world_size, node_size)
    return fill_ds_json(settled, LayerSizes.of(model, config.lora.rank, config.lora.targets), has_bf16), problems


def settle_ds_json(
    loaded: dict[str, Any], path: Path, config: RunConfig, world_size: int, node_size: int | None = None
) -> tuple[dict[str, Any], list[str]]:
    """Fills what the run config and the ranks decide, and checks the numbers that both files hold.

    One rank has nothing to scatter; reducing whole buckets saves ZeRO-3 a copy of every gradient. `node_size` are the
    ranks of a machine, all where it is not given.

    Returns:
        The JSON for `fill_ds_json`, without optimizer and scheduler (built from the run config), and problems.
    """
    settled = copy.deepcopy(loaded)
    problems = settle_batch(settled, path, config.optim, world_size)
    problems += settle_optimizer(settled.pop("optimizer", {}), path, config.optim)
    settled.setdefault("bf16", settled.pop("bfloat16", {})).setdefault("enabled", "auto")
    if settled.pop("scheduler", None) is not None:
        problems.append(f"{path}: scheduler: the schedule is part of what is learned; remove it and set optim.schedule")
    if settled["zero_optimization"].get(SCATTER) == "auto":
        settled["zero_optimization"][SCATTER] = world_size > 1
    problems += settle_second_cut(settled["zero_optimization"], path, world_size, node_size or world_size)
    for section, reason in NO_NVME.items():
        if settled["zero_optimization"].get(section, {}).get("device") == "nvme":
            key = f"zero_optimization.{section}.device"
            problems.append(f"{path}: {key}=nvme: {reason}; allowed: none, cpu")
    problems += [
        f'{path}: {key}="auto" has no counterpart in the run config; write a value'
        for key, value in flat(settled).items()
        if value == "auto" and key not in NOT_FILLED_HERE
    ]
    return settled, problems


def fill_ds_json(settled: dict[str, Any], layer: LayerSizes, has_bf16: bool) -> dict[str, Any]:
    """The JSON that DeepSpeed gets: "auto" becomes what the model's layers and the device decide.

    ZeRO-3 gathers a decoder layer as one, and should have the whole next one on its way while a layer computes. Above
    `stage3_max_live_parameters` it fetches nothing ahead: that is what a backward with checkpointing, which asks for
    each layer twice, comes to hold. Parameters up to the persistence threshold stay gathered, and are not counted.
    Gradients are reduced a layer at a time; the small ones of adapters when there are D^2 elements.
    """
    bf16, zero = dict(settled["bf16"]), dict(settled["zero_optimization"])
    if bf16["enabled"] == "auto":
        bf16["enabled"] = has_bf16
    if zero.get(PERSISTENCE) == "auto":
        zero[PERSISTENCE] = 10 * layer.width
    if zero.get(PREFETCH) == "auto":
        zero[PREFETCH] = layer.above(int(zero.get(PERSISTENCE, DEFAULT_PERSISTENCE)))
    if zero.get(REDUCE) == "auto":
        zero[REDUCE] = max(layer.width**2, sum(layer.trained))
    return settled | {"bf16": bf16, "zero_optimization": zero}


def settle(section: dict[str, Any], key: str, value: Any, place: str, ours: str) -> list[str]:
    """Writes the run config's value of a key into a part of the JSON; a problem where that has another one."""
    given = section.get(key, "auto")
    section[key] = value
    if given in ("auto", value):
        return []
    return [f'{place}{key}={given} but {ours} gives {value}; write "auto" in the JSON, or change one']


def settle_second_cut(zero: dict[str, Any], path: Path, world_size: int, node_size: int) -> list[str]:
    """The second cut of the weights (hpZ): by "auto" over the ranks of a machine, where there are several machines."""
    if HPZ not in zero:
        return []
    size, place = zero[HPZ], f"{path}: zero_optimization.{HPZ}"
    if size == "auto":
        size = zero[HPZ] = node_size if node_size < world_size else 1
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        return [f'{place}={size!r}: the ranks of a machine, or "auto"']
    if size > 1 and zero["stage"] != 3:
        return [f"{place}={size}: only stage 3 cuts weights; remove it"]
    if world_size % size:
        zero[HPZ] = 1
        return [f"{place}={size} does not divide {world_size} ranks; it needs machines of equally many ranks"]
    return []


def settle_batch(resolved: dict[str, Any], path: Path, optim: OptimConfig, world_size: int) -> list[str]:
    """Micro-batch, accumulation and batch size; "auto" stays where the micro-batches are cut by tokens."""
    problems = settle(resolved, BATCH, optim.global_batch, f"{path}: ", "optim.global_batch")
    micro_batch = resolved.setdefault(MICRO_BATCH, "auto")
    if micro_batch == "auto":
        accumulation = resolved.get(ACCUMULATION, "auto")
        resolved[ACCUMULATION] = "auto"
        if accumulation == "auto":
            return problems
        ours = f'{MICRO_BATCH}="auto" cuts each step by data.micro_batch_tokens'
        return [*problems, f'{path}: {ACCUMULATION}={accumulation} but {ours}; write "auto", or a number of rows there']
    if not isinstance(micro_batch, int) or micro_batch < 1:
        resolved |= {MICRO_BATCH: 1, ACCUMULATION: 1, BATCH: 1}
        return [*problems, f'{path}: {MICRO_BATCH}={micro_batch!r}: a positive number or "auto"']
    accumulation = -(-optim.global_batch // (micro_batch * world_size))
    ours = f"optim.global_batch={optim.global_batch} on {world_size} ranks x {micro_batch}"
    problems += settle(resolved, ACCUMULATION, accumulation, f"{path}: ", ours)
    # DeepSpeed wants the product; a rank may be short of one document
    resolved[BATCH] = accumulation * micro_batch * world_size
    return problems


def rows_per_micro_batch(ds_json: dict[str, Any]) -> int | None:
    """Rows, or packs, of a micro-batch as the JSON says; `None` where it is cut by tokens."""
    rows = ds_json.get(MICRO_BATCH, "auto")
    return None if rows == "auto" else int(rows)


def as_deepspeed_counts(ds_json: dict[str, Any]) -> dict[str, Any]:
    """The resolved JSON for DeepSpeed, which knows no micro-batches of different number: it is told one of one row.

    The engine says where a step ends; from this DeepSpeed takes only what it divides losses by.
    """
    if rows_per_micro_batch(ds_json) is not None:
        return ds_json
    others = {key: value for key, value in ds_json.items() if key not in (ACCUMULATION, BATCH)}
    return others | {MICRO_BATCH: 1}


def settle_optimizer(optimizer: dict[str, Any], path: Path, optim: OptimConfig) -> list[str]:
    """Compares DeepSpeed's optimizer section with the run config, which is what the optimizer is built from."""
    problems = []
    if optimizer and optimizer.get("type") not in ADAM_TYPES:
        problems.append(f"{path}: optimizer.type={optimizer.get('type')!r}: allowed: {', '.join(ADAM_TYPES)}")
    expected = {
        "lr": (optim.lr, "optim.lr"),
        "betas": ([optim.beta1, optim.beta2], "optim.beta1, optim.beta2"),
        "eps": (optim.eps, "optim.eps"),
        "weight_decay": (optim.weight_decay, "optim.weight_decay"),
    }
    params, place = optimizer.get("params", {}), f"{path}: optimizer.params."
    for key in list(params):
        if key in expected:
            value, ours = expected[key]
            problems += settle(params, key, value, place, ours)
        else:
            problems.append(f"{place}{key}: unknown; allowed: {', '.join(expected)}")
    return problems
