"""How it runs: DeepSpeed's JSON, read strictly, with every "auto" filled from the run config.

DeepSpeed itself takes a misspelt top-level key for no key, and "auto" for bf16 as false. Here both are settled before
DeepSpeed sees them, and a number that stands in both files with different values is an error that names both places.
"""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any

from lift_ds.config import RunConfig
from lift_ds.data.loader import micro_batches_per_step

KNOWN_KEYS = frozenset(
    """activation_checkpointing aio autotuning bf16 bfloat16 checkpoint comet comms_logger communication_data_type
    compile compression_training csv_monitor curriculum_learning data_efficiency data_types dataloader_drop_last
    disable_allgather dump_state elasticity flops_profiler fp16 gradient_accumulation_steps gradient_clipping
    gradient_predivide_factor memory_breakdown nebula optimizer prescale_gradients scheduler
    seq_parallel_communication_data_type sparse_gradients steps_per_print tensorboard timers torch_autocast
    train_batch_size train_micro_batch_size_per_gpu wall_clock_breakdown wandb zero_allow_untested_optimizer
    zero_force_ds_cpu_optimizer zero_optimization""".split()
)
ADAM_TYPES = ("AdamW", "Adam")
HIDDEN_SIZE_RULES = {
    "reduce_bucket_size": lambda hidden: hidden * hidden,
    "stage3_prefetch_bucket_size": lambda hidden: int(0.9 * hidden * hidden),
    "stage3_param_persistence_threshold": lambda hidden: 10 * hidden,
}


def read_ds_json(path: Path) -> tuple[dict[str, Any], list[str]]:
    """The JSON of `--deepspeed`, and what is wrong with it."""
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        return {}, [f"--deepspeed {path}: cannot be read: {error.strerror}; ds_configs/ holds ready ones"]
    except ValueError as error:
        return {}, [f"--deepspeed {path}: not JSON: {error}"]
    if not isinstance(loaded, dict):
        return {}, [f"--deepspeed {path}: holds a {type(loaded).__name__}; an object is expected"]
    problems = []
    for key in sorted(set(loaded) - KNOWN_KEYS):
        close = difflib.get_close_matches(key, KNOWN_KEYS, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}?" if close else "see DeepSpeed's configuration page"
        problems.append(f"{path}: unknown key {key!r}; DeepSpeed would ignore it; {hint}")
    zero = loaded.get("zero_optimization")
    if not isinstance(zero, dict) or zero.get("stage") not in (0, 1, 2, 3):
        problems.append(f"{path}: zero_optimization.stage must be 0, 1, 2 or 3; DeepSpeed would take nothing for 0")
    if isinstance(loaded.get("fp16"), dict) and loaded["fp16"].get("enabled") not in (None, False):
        problems.append(f"{path}: fp16.enabled: only bf16 and float32 are supported; remove it and use bf16")
    return loaded, problems


def resolve_ds_json(
    loaded: dict[str, Any], path: Path, config: RunConfig, world_size: int, hidden_size: int, has_bf16: bool
) -> tuple[dict[str, Any], list[str]]:
    """Fills "auto" and checks the numbers that both files hold.

    Args:
        loaded: The JSON as read.
        path: Where it was read from, for messages.
        config: The run config.
        world_size: Number of ranks.
        hidden_size: Model width, for bucket sizes that are "auto".
        has_bf16: What "auto" means for bf16: true on accelerators, false on CPU.

    Returns:
        The JSON that DeepSpeed gets, without optimizer and scheduler (built from the run config), and problems.
    """
    resolved = json.loads(json.dumps(loaded))
    problems: list[str] = []

    def settle(section: dict[str, Any], key: str, value: Any, ours: str, label: str) -> None:
        given = section.get(key, "auto")
        if given not in ("auto", value):
            problems.append(
                f'{path}: {label}={given} but {ours} gives {value}; write "auto" in the JSON, or change one'
            )
        section[key] = value

    micro_batch = resolved.get("train_micro_batch_size_per_gpu", "auto")
    if micro_batch == "auto":
        micro_batch = -(-config.optim.global_batch // world_size)
    if not isinstance(micro_batch, int) or micro_batch < 1:
        problems.append(f'{path}: train_micro_batch_size_per_gpu={micro_batch!r}: a positive number or "auto"')
        return resolved, problems
    resolved["train_micro_batch_size_per_gpu"] = micro_batch
    accumulation = micro_batches_per_step(config.optim.global_batch, micro_batch, world_size)
    ours = f"optim.global_batch={config.optim.global_batch} on {world_size} ranks x {micro_batch}"
    settle(resolved, "gradient_accumulation_steps", accumulation, ours, "gradient_accumulation_steps")
    settle(resolved, "train_batch_size", config.optim.global_batch, "optim.global_batch", "train_batch_size")
    resolved["train_batch_size"] = accumulation * micro_batch * world_size

    bf16 = resolved.setdefault("bf16", resolved.pop("bfloat16", {"enabled": "auto"}))
    if bf16.get("enabled", "auto") == "auto":
        bf16["enabled"] = has_bf16
    if not bf16["enabled"] and resolved.get("data_types", {}).get("grad_accum_dtype") == "auto":
        resolved["data_types"]["grad_accum_dtype"] = "fp32"
    optimizer = resolved.pop("optimizer", {})
    if optimizer and optimizer.get("type") not in ADAM_TYPES:
        problems.append(f"{path}: optimizer.type={optimizer.get('type')!r}: allowed: {', '.join(ADAM_TYPES)}")
    params = optimizer.get("params", {})
    expected = {
        "lr": config.optim.lr,
        "betas": [config.optim.beta1, config.optim.beta2],
        "eps": config.optim.eps,
        "weight_decay": config.optim.weight_decay,
    }
    for key in params:
        if key not in expected:
            problems.append(f"{path}: optimizer.params.{key}: unknown; allowed: {', '.join(expected)}")
        else:
            settle(
                params,
                key,
                expected[key],
                f"optim.{'beta1, optim.beta2' if key == 'betas' else key}",
                f"optimizer.params.{key}",
            )
    if resolved.pop("scheduler", None) is not None:
        problems.append(f"{path}: scheduler: the schedule is part of what is learned; remove it and set optim.schedule")
    zero = resolved["zero_optimization"]
    for key, rule in HIDDEN_SIZE_RULES.items():
        if zero.get(key) == "auto":
            zero[key] = rule(hidden_size)
    problems += [f'{path}: {key}="auto" has no counterpart in the run config; write a value' for key in autos(resolved)]
    return resolved, problems


def autos(section: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys that are still "auto"."""
    found = []
    for key, value in section.items():
        if isinstance(value, dict):
            found += autos(value, f"{prefix}{key}.")
        elif value == "auto":
            found.append(prefix + key)
    return found
