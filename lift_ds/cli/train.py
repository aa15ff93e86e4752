"""Fine-tunes a masked diffusion language model under DeepSpeed.

    deepspeed launchers/train.py --deepspeed ds_configs/zero3.json
    deepspeed launchers/train.py --deepspeed ds_configs/zero3.json --model FOLDER --data FILE.jsonl optim.lr=5e-6

Without --config and --data the built-in recipe fine-tunes the small built-in base on the built-in reasoning tasks.
`torchrun` and `mpirun -np 2 python` start it as well. What is learned comes from --config and the overrides, how it
runs from --deepspeed.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from lift_ds.config.deepspeed import fill_ds_json
from lift_ds.config.loading import ConfigError, explain_keys
from lift_ds.config.run import RunConfig
from lift_ds.data.survey.rows import FirstRows, check_first_rows
from lift_ds.ranks.collectives import Collectives
from lift_ds.ranks.launch import Launch, check_semaphores
from lift_ds.ranks.meeting import meet
from lift_ds.ranks.running import run_on_ranks
from lift_ds.storage.run_record import refuse_newer_run
from lift_ds.training.chat import describe_other_format
from lift_ds.training.inputs import Prepared, RunData, open_weights, prepare
from lift_ds.training.metrics import METRICS_FILE
from lift_ds.training.resumed import Resumed, check_position
from lift_ds.training.run_files import ModelFolder, RunSources, list_sources, open_model
from lift_ds.training.run_folder import claimed

from .tool import StrictParser, quieten, tool_parser
from .train_settings import attempt, read_settings


def make_parser() -> argparse.ArgumentParser:
    """The flags; every key of the run config is explained below them."""
    parser = tool_parser(__doc__, "keys for overrides and recipes:\n" + explain_keys(), StrictParser)
    parser.add_argument(
        "--deepspeed",
        type=Path,
        required=True,
        metavar="JSON",
        help="DeepSpeed configuration, as ds_configs/zero3.json",
    )
    parser.add_argument("--config", type=Path, metavar="YAML", help="recipe, as in launchers/recipes")
    parser.add_argument("--model", help="same as model.path=...")
    parser.add_argument("--data", action="append", help="same as data.path=...; give it again for more files")
    parser.add_argument("--output", help="same as output=...")
    parser.add_argument("--resume", help="same as checkpoint.resume=...: auto, or a checkpoint folder")
    parser.add_argument(
        "--change",
        action="append",
        metavar="KEY[,KEY...]",
        help="with --resume: keys whose given values differ from the run's and are meant, as optim.lr; "
        "deepspeed.gradient_clipping for one of the JSON",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything, print the resolved configuration, stop"
    )
    parser.add_argument("--local_rank", "--local-rank", type=int, help="set by the launcher; ignored")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="for example objective.method=lift2 optim.steps=300"
    )
    return parser


@dataclass(frozen=True)
class Checked:
    """What a run is started with, found good.

    Args:
        run: The run config, with its run folder settled.
        ds_json: The DeepSpeed JSON, but for what model and device decide.
        model: The model's folder, whose weights may not be there yet.
        sources: The data's files.
        resumed: The run that goes on, if any.
        notes: What is to be said before the first lines.
        is_numbered: Whether the run folder is a new one, named by the next number.
    """

    run: RunConfig
    ds_json: dict[str, Any]
    model: ModelFolder
    sources: RunSources
    resumed: Resumed | None
    notes: list[str]
    is_numbered: bool


def check(arguments: argparse.Namespace, launch: Launch) -> Checked:
    """Reads both configurations, and finds what they name.

    Raises:
        ConfigError: Everything that is wrong with them, or is not there.
    """
    settings = read_settings(arguments)
    run, problems = settings.run, settings.problems
    ds_json = settings.settle_json(arguments.deepspeed, launch.world_size)
    model = attempt(partial(open_model, run.model.path, with_weights=False), problems)
    sources = attempt(partial(list_sources, run), problems)
    settings.judge(None if model is None else model.folder)
    problems += find_other_run(run)
    attempt(partial(refuse_newer_run, Path(run.output)), problems)  # before this run's own record replaces that one
    if run.model.compile and run.data.packing != "none":
        packing = f"data.packing={run.data.packing}"
        problems.append(f"model.compile=true with {packing}: every pack would be compiled anew; change one of them")
    if problems or model is None or sources is None:
        raise ConfigError(list(dict.fromkeys(problems)))
    return Checked(run, ds_json, model, sources, settings.resumed, settings.notes, settings.is_numbered)


def find_other_run(run: RunConfig) -> list[str]:
    """A problem where the run folder holds a run that is not to be resumed."""
    output = Path(run.output)
    if run.checkpoint.resume == "none" and (
        (output / METRICS_FILE).exists() or list(output.glob("checkpoints/step-*"))
    ):
        return [f"output={output}: holds a run already; continue it with --resume auto, or name another folder"]
    return []


def run_training(arguments: argparse.Namespace, launch: Launch) -> None:
    """Checks, then trains."""
    quieten(launch.is_main)
    checked = check(arguments, launch)
    if arguments.dry_run:
        prepared, ds_json = open_run(checked, launch)
        if launch.is_main:
            print(yaml.safe_dump({"run": prepared.run.model_dump(), "deepspeed": ds_json}, sort_keys=False))
        return
    from lift_ds.training import engine
    from lift_ds.training.run import execute

    if checked.run.data.workers:
        check_semaphores(f"data.workers={checked.run.data.workers}")
    engine.start_distributed(launch)  # before anything slow: a rank may be missing, or the port taken
    ranks = Collectives(engine.current_device())
    with claimed(checked.run.output, checked.is_numbered, ranks) as output:
        model = checked.model if checked.run.model.from_scratch else checked.model.fetch_weights()
        clock = checked.run.data.clock or ranks.on_main(lambda: datetime.now().isoformat(timespec="seconds"))
        data = checked.run.data.model_copy(update={"clock": clock})  # one time for all ranks, and all of the run
        run = checked.run.model_copy(update={"output": output, "data": data})
        prepared, ds_json = open_run(replace(checked, run=run, model=model), launch)
        source = open_weights(prepared)
        meet(launch).gather("reading data and model")  # a rank that has failed meanwhile calls no collective
        execute(prepared, source, ds_json, launch.is_main, checked.resumed)


def open_run(checked: Checked, launch: Launch) -> tuple[Prepared, dict[str, Any]]:
    """Opens model and data, and says what will run; with the JSON as DeepSpeed gets it.

    Raises:
        ValueError: Something does not fit; see the functions that it calls.
    """
    from lift_ds.training import engine

    run = checked.run
    prepared = prepare(run, checked.model, checked.sources)
    check_position(checked.resumed, prepared.data.stream)
    ds_json = fill_ds_json(checked.ds_json, checked.model.config.hidden_size, engine.has_accelerator())
    first_rows = check_first_rows(prepared.data.reader, run.data.check_rows, run.data.max_skipped)
    if launch.is_main:
        lines = [*checked.notes, *describe_other_format(prepared)]
        lines += [describe(run, ds_json, launch, prepared.data, first_rows)]
        print("\n".join(lines), flush=True)
    return prepared, ds_json


def describe(run: RunConfig, ds_json: dict[str, Any], launch: Launch, data: RunData, first_rows: FirstRows) -> str:
    """The first lines of a run: where it runs and on what."""
    ranks = "1 rank" if launch.world_size == 1 else f"{launch.world_size} ranks"
    stage = ds_json["zero_optimization"]["stage"]
    hint = " (all slots that the launcher found; --num_gpus 2 asks for two)" if launch.world_size == 1 else ""
    if launch.world_size > run.optim.global_batch:
        hint += f" ({launch.world_size - run.optim.global_batch} of them without a document: raise optim.global_batch)"
    groups = data.reader.manifest.groups
    unused = "".join(f"{line}\n" for line in first_rows.unused_lines())
    precision = "bf16" if ds_json["bf16"]["enabled"] else "float32"
    return (
        f"{ranks}{hint}, ZeRO-{stage}, {precision}, global batch {run.optim.global_batch} = "
        f"{ds_json['gradient_accumulation_steps']} x {ds_json['train_micro_batch_size_per_gpu']} documents a rank\n"
        f"model {run.model.path}, data {', '.join(group.name for group in groups)}: {data.num_rows} rows, "
        f"{first_rows}; columns {', '.join(str(columns.named()) for columns in data.reader.columns)}, "
        f"lanes: {data.stream.lanes.num_lanes}\n{unused}"
        f"{run.objective.method}, {run.optim.steps} steps -> {run.output}"
    )


def main(argv: list[str] | None = None) -> None:
    """Entry point; exits with 2 on a configuration or data error."""
    arguments = make_parser().parse_intermixed_args(argv)
    run_on_ranks(partial(run_training, arguments))


if __name__ == "__main__":
    main()
