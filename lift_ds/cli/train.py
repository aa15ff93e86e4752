"""Fine-tunes a masked diffusion language model under DeepSpeed.

    deepspeed launchers/train.py --deepspeed ds_configs/zero3.json
    deepspeed launchers/train.py --deepspeed ds_configs/zero3.json --model FOLDER --data FILE.jsonl optim.lr=5e-6

Without --config and --data the built-in recipe fine-tunes the small built-in base on the built-in reasoning tasks.
`torchrun` and `mpirun -np 2 python` start it as well. What is learned comes from --config and the overrides, how it
runs from --deepspeed.
"""

from __future__ import annotations

import argparse
import socket
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml

from lift_ds.config.deepspeed import fill_ds_json, rows_per_micro_batch
from lift_ds.config.loading import ConfigError, explain_keys
from lift_ds.config.run import RunConfig
from lift_ds.data.survey.rows import FirstRows, check_first_rows
from lift_ds.models.attention import choose_attention
from lift_ds.models.kernels import choose_kernels
from lift_ds.models.layer_sizes import LayerSizes
from lift_ds.objectives import make_objective
from lift_ds.planning.report import Longest, Plan
from lift_ds.planning.row_memory import free_host_bytes, row_memory_line
from lift_ds.planning.run import plan_of
from lift_ds.ranks.launch import Launch, check_semaphores
from lift_ds.ranks.meeting import meet
from lift_ds.ranks.once import Once
from lift_ds.ranks.running import run_on_ranks
from lift_ds.ranks.shares import Collectives
from lift_ds.storage.manifest import read_manifest
from lift_ds.storage.run_folder import METRICS_FILE
from lift_ds.storage.run_record import refuse_newer_run
from lift_ds.training.inputs import Prepared, RunData, describe_other_format, open_weights, prepare
from lift_ds.training.preflight import compare_ranks, num_checkpoints
from lift_ds.training.readers import lanes_line
from lift_ds.training.resumed import check_position, find_together
from lift_ds.training.run_files import ModelFolder, RunSources, claimed, list_sources, open_model

from .tool import LOCAL_RANK, StrictParser, check_writable, flag, quieten, tool_parser
from .train_settings import Settings, attempt, read_settings

FLAGS = (
    flag(
        "--deepspeed",
        type=Path,
        required=True,
        metavar="JSON",
        help="DeepSpeed configuration, as ds_configs/zero3.json",
    ),
    flag("--config", type=Path, metavar="YAML", help="recipe, as in launchers/recipes"),
    flag("--model", help="same as model.path=..."),
    flag("--data", action="append", help="same as data.path=...; give it again for more files"),
    flag("--output", help="same as output=..."),
    flag("--resume", help="same as checkpoint.resume=...: auto, or a checkpoint folder"),
    flag(
        "--change",
        action="append",
        metavar="KEY[,KEY...]",
        help="with --resume: keys whose given values differ from the run's and are meant, as optim.lr; "
        "deepspeed.gradient_clipping for one of the JSON",
    ),
    flag("--dry-run", action="store_true", help="check everything, print the resolved configuration, stop"),
    LOCAL_RANK,
    flag("overrides", nargs="*", metavar="key=value", help="for example objective.method=lift2 optim.steps=300"),
)


def make_parser() -> argparse.ArgumentParser:
    """The flags; every key of the run config is explained below them."""
    return tool_parser(__doc__, FLAGS, StrictParser, "keys for overrides and recipes:\n" + explain_keys())


@dataclass(frozen=True)
class Checked:
    """What a run is started with, found good.

    Args:
        settings: The run's.
        ds_json: The DeepSpeed JSON, but for what model and device decide.
        model: The model's folder, whose weights may not be there yet.
        sources: The data's files.
    """

    settings: Settings
    ds_json: dict[str, Any]
    model: ModelFolder
    sources: RunSources


def check(arguments: argparse.Namespace, launch: Launch, once: Once) -> Checked:
    """Reads both configurations, and finds what they name; a ConfigError has all that is wrong or not there."""
    settings = read_settings(arguments)
    run, problems = settings.run, settings.problems
    ds_json = settings.settle_json(arguments.deepspeed, launch.world_size, launch.local_world_size)
    model = attempt(partial(open_model, run.model.path, with_weights=False, once=once), problems)
    sources = attempt(partial(once.per_node, "listing the data", partial(list_sources, run)), problems)
    settings.judge(None if model is None else model.folder)
    output = Path(run.output)
    holds_run = (output / METRICS_FILE).exists() or any(output.glob("checkpoints/step-*"))
    if holds_run and run.checkpoint.resume == "none":
        problems.append(f"output={output}: holds a run already; continue it with --resume auto, or name another folder")
    if run.runtime.prometheus_file is not None and launch.is_main:
        attempt(partial(check_writable, Path(run.runtime.prometheus_file), "runtime.prometheus_file"), problems)
    attempt(partial(refuse_newer_run, output), problems)  # before this run's own record replaces that one
    if model is not None:
        attempt(partial(run.model.num_checkpointed, int(model.config.num_hidden_layers)), problems)
        if model.checkpoint is not None and run.lora.rank:
            problems.append(
                f"lora.rank={run.lora.rank} on model.path={run.model.path}: adapters name their base by its files; "
                f"write them first, `python tools/zero_to_hf.py {model.checkpoint} FOLDER`, and name that folder"
            )
    if problems or model is None or sources is None:
        raise ConfigError(list(dict.fromkeys(problems)))
    return Checked(settings, ds_json, model, sources)


def run_training(arguments: argparse.Namespace, launch: Launch) -> None:
    """Checks, then trains."""
    quieten(launch.is_main)
    once = Once(None if arguments.dry_run else launch)
    checked = check(arguments, launch, once)
    settings, run = checked.settings, checked.settings.run
    if arguments.dry_run:
        prepared, ds_json, plan = open_run(checked, run, launch, once)
        if launch.is_main:
            print("\n".join(plan.lines()))
            print(yaml.safe_dump({"run": prepared.run.model_dump(), "deepspeed": ds_json}, sort_keys=False))
        return
    from lift_ds.training import engine
    from lift_ds.training.run import execute

    if run.data.workers:
        check_semaphores(f"data.workers={run.data.workers}")
    engine.start_distributed(launch)  # before anything slow: a rank may be missing, or the port taken
    ranks = Collectives(engine.current_device())
    settings.require_same(ranks, checked.ds_json)
    require_nodes(run.runtime.nodes, ranks)
    once = Once(launch, ranks)
    with claimed(run.output, settings.is_numbered, ranks) as output:
        if not run.model.from_scratch:
            require_whole(checked, ranks)
            checked = replace(checked, model=checked.model.fetch_weights(once))
        clock = run.data.clock or ranks.on_main(lambda: datetime.now().isoformat(timespec="seconds"))
        data = run.data.model_copy(update={"clock": clock})  # one time for all ranks, and all of the run
        run = run.model_copy(update={"output": output, "data": data})
        prepared, ds_json, plan = open_run(checked, run, launch, once)
        if launch.world_size > 1:
            count = partial(num_checkpoints, run.checkpoint, run.optim.steps, Path(output) / "checkpoints")
            table = compare_ranks(launch, ranks, prepared.folder, Path(output), plan.checkpoint(), count)
            if launch.is_main:
                print(table, flush=True)
        source = open_weights(prepared)
        meet(launch).gather("reading data and model")  # a rank that has failed meanwhile calls no collective
        execute(prepared, source, ds_json, launch, settings.resumed, plan)


def require_nodes(wanted: int | None, ranks: Collectives) -> None:
    """Checks that as many machines take part as the config says; all ranks call it.

    Raises:
        ValueError: They are fewer or more; on every rank.
    """
    hosts = sorted(set(ranks.gather_objects(socket.gethostname())))
    if wanted is not None and len(hosts) != wanted:
        raise ValueError(
            f"runtime.nodes={wanted}, but the ranks are on {len(hosts)}: {', '.join(hosts[:8])}. Name the machines to "
            "the launcher (deepspeed --hostfile, sbatch --nodes), or set runtime.nodes"
        )


def require_whole(checked: Checked, ranks: Collectives) -> None:
    """Checks every byte of the checkpoint that a new run takes its weights from; all ranks call it.

    Raises:
        ValueError: It is damaged, or machines see another one by that name; on every rank.
    """
    checkpoint, resumed = checked.model.checkpoint, checked.settings.resumed
    named = sorted(set(map(str, ranks.gather_objects(checkpoint))))
    if len(named) > 1:
        raise ValueError(f"model.path={checked.model.path} is not the same everywhere: {', '.join(named)}; name one")
    if checkpoint is not None and (resumed is None or not resumed.has_steps):
        find_together(checkpoint.parent, str(checkpoint), ranks, "model.path")
        step = read_manifest(checkpoint).step
        line = f"weights of {checkpoint}, step {step}; the optimizer is new, and the data begin anew"
        checked.settings.notes.append(line)


def open_run(checked: Checked, run: RunConfig, launch: Launch, once: Once) -> tuple[Prepared, dict[str, Any], Plan]:
    """Opens model and data, or raises a ValueError; says what will run; gives DeepSpeed's JSON and the plan."""
    from lift_ds.training import engine

    prepared = prepare(run, checked.model, checked.sources, once)
    check_position(checked.settings.resumed, prepared.data.stream)
    sizes = LayerSizes.of(checked.model.config, run.lora.rank, run.lora.targets)
    ds_json = fill_ds_json(checked.ds_json, sizes, engine.has_bf16())
    dtype = torch.bfloat16 if ds_json["bf16"]["enabled"] else torch.float32
    device = engine.current_device()
    attention = choose_attention(checked.model.config, run.model.attention, device, dtype)
    kernels, reason = choose_kernels(run.model.kernels, device, run.model.compile)
    computing = f"{attention} attention, {kernels} kernels" + (f" ({reason})" if reason else "")
    look = partial(check_first_rows, prepared.data.reader, run.data.check_rows, run.data.max_skipped)
    first_rows = once.per_run("checking the first rows", look)
    plan = plan_here(prepared, ds_json, launch, first_rows)
    memory_line = once.per_node("comparing rows with memory", partial(describe_memory, prepared, first_rows, launch))
    if engine.has_accelerator():
        once.per_run("comparing weights with memory", plan.require_room)
    if launch.is_main:
        first_lines = describe(run, ds_json, launch, prepared.data, first_rows, computing, memory_line)
        print("\n".join([*checked.settings.notes, *describe_other_format(prepared), first_lines]), flush=True)
    return prepared, ds_json, plan


def describe_memory(prepared: Prepared, first_rows: FirstRows, launch: Launch) -> str:
    """What remembering the rows takes on this host, with a line break; empty where they are not remembered.

    Raises:
        ValueError: More than it has.
    """
    run = prepared.run
    if not make_objective(run.objective).remembers_rows or not first_rows.num_good:
        return ""
    tokens_a_row = first_rows.num_response_tokens / first_rows.num_good
    share, num_drawn = launch.local_world_size / launch.world_size, run.optim.steps * run.optim.global_batch
    return row_memory_line(prepared.data.num_rows, tokens_a_row, share, num_drawn, free_host_bytes())


def plan_here(prepared: Prepared, ds_json: dict[str, Any], launch: Launch, first_rows: FirstRows) -> Plan:
    """What the run needs of these machines: for its longest pack, else the longest row that was read.

    Where rows were not all read and `data.max_length` is given, that: a model's own maximum says nothing of the rows.
    """
    from lift_ds.training import engine

    data = prepared.data
    longest = Longest(data.stream.capacity or data.encoder.max_length)
    knows_longest = first_rows.num_checked == data.num_rows or prepared.run.data.max_length is None
    if data.stream.capacity is None and first_rows.longest and knows_longest:
        longest = Longest(first_rows.longest, first_rows.num_checked)
    return plan_of(
        prepared.config,
        prepared.run,
        ds_json,
        -(-launch.world_size // launch.local_world_size),
        launch.world_size,
        engine.device_gib(),
        is_cpu=not engine.has_accelerator(),
        longest=longest,
    )


def describe(
    run: RunConfig,
    ds_json: dict[str, Any],
    launch: Launch,
    data: RunData,
    first_rows: FirstRows,
    computing: str,
    memory_line: str,
) -> str:
    """The first lines of a run: where it runs and on what."""
    ranks = "1 rank" if launch.world_size == 1 else f"{launch.world_size} ranks"
    stage = ds_json["zero_optimization"]["stage"]
    hint = " (all slots that the launcher found; --num_gpus 2 asks for two)" if launch.world_size == 1 else ""
    if launch.world_size > run.optim.global_batch:
        hint += f" ({launch.world_size - run.optim.global_batch} of them without a document: raise optim.global_batch)"
    groups = data.reader.manifest.groups
    unused = "".join(f"{line}\n" for line in first_rows.unused_lines())
    unused += lanes_line(run.data, data.stream.lanes.num_lanes, data.num_rows, launch.world_size)
    rows = rows_per_micro_batch(ds_json)
    cut = f"= {ds_json['gradient_accumulation_steps']} x {rows} documents a rank"
    if rows is None:
        cut = f"in micro-batches of {run.data.micro_batch_tokens:,} tokens"
    precision = "bf16" if ds_json["bf16"]["enabled"] else "float32"
    return (
        f"{ranks}{hint}, ZeRO-{stage}, {precision}, {computing}, global batch {run.optim.global_batch} {cut}\n"
        f"model {run.model.path}, data {', '.join(group.name for group in groups)}: {data.num_rows} rows, "
        f"{first_rows}; columns {', '.join(str(columns.named()) for columns in data.reader.columns)}, "
        f"lanes: {data.stream.lanes.num_lanes}\n{unused}{memory_line}"
        f"{run.objective.method}, {run.optim.steps} steps -> {run.output}"
    )


def main(argv: list[str] | None = None) -> None:
    """Entry point; exits with 2 on a configuration or data error."""
    arguments = make_parser().parse_intermixed_args(argv)
    run_on_ranks(partial(run_training, arguments))


if __name__ == "__main__":
    main()
