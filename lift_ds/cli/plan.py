"""Says what a run will need before its first step: memory by part, disk, traffic, time; and what to change.

    python tools/plan.py --model 8b --nodes 4 --gpus 8 --ds ds_configs/zero3.json
    python tools/plan.py --model 8b --gpus 8 --ds ds_configs/zero2.json lora.rank=128 model.gradient_checkpointing=true

No weights are read. Memory comes from what DeepSpeed holds and from a forward and backward on torch's meta device;
times from the rates that are stated. Exits with 1 where the run does not fit.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from lift_ds.config.deepspeed import read_ds_json, resolve_ds_json
from lift_ds.config.loading import ConfigError, load_run_config
from lift_ds.planning.costs import Rates
from lift_ds.planning.report import Plan
from lift_ds.planning.run import plan_of
from lift_ds.planning.sizes import config_of

from .tool import check_counts, flag, tool, write_json


@tool(
    __doc__,
    flag("--model", required=True, help="folder, hub name (owner/name), or a size known without files: 8b, dream-7b, "
         "sdar-8b, llada2-mini, builtin:base"),
    flag("--ds", type=Path, required=True, metavar="JSON", help="DeepSpeed configuration, as ds_configs/zero3.json"),
    flag("--nodes", type=int, default=1, help="machines"),
    flag("--gpus", type=int, default=8, help="GPUs of each"),
    flag("--gpu-gib", type=float, default=80.0, help="memory of a GPU"),
    flag("--config", type=Path, metavar="YAML", help="recipe, as in launchers/recipes"),
    flag("--mfu", type=float, default=Rates.mfu, help="share of the peak rate that is reached (default: %(default)s)"),
    flag("--tflops", type=float, default=Rates.peak_tflops, help="a GPU's peak rate (default: %(default)s, an H100's)"),
    flag("--json", type=Path, metavar="FILE", help="write the figures there too"),
    flag("overrides", nargs="*", metavar="key=value", help="keys of the run config, as data.max_length=2048"),
)  # fmt: skip
def main(arguments: argparse.Namespace) -> bool:
    """Prints the plan; returns whether the run fits."""
    check_counts(arguments, "nodes", "gpus")
    for name in ("gpu_gib", "mfu", "tflops"):
        if getattr(arguments, name) <= 0:
            raise ValueError(f"--{name.replace('_', '-')}={getattr(arguments, name)}: a number above 0 is expected.")
    config = config_of(arguments.model)
    run, problems = load_run_config(arguments.config, arguments.overrides)
    loaded, more = read_ds_json(arguments.ds)
    if not more:
        world_size = arguments.nodes * arguments.gpus
        ds_json, more = resolve_ds_json(loaded, arguments.ds, run, world_size, config, True, arguments.gpus)
    if problems or more:
        raise ConfigError(problems + more)
    rates = Rates(peak_tflops=arguments.tflops, mfu=arguments.mfu)
    plan: Plan = plan_of(config, run, ds_json, arguments.nodes, world_size, arguments.gpu_gib, rates)
    print("\n".join(plan.lines()))
    if arguments.json is not None:
        write_json(arguments.json, plan.figures())
    return plan.fits
