"""Fine-tunes a masked diffusion language model under DeepSpeed.

    deepspeed launchers/train.py --deepspeed ds_configs/zero3.json
    deepspeed launchers/train.py --deepspeed ds_configs/zero3.json --model FOLDER --data FILE.jsonl optim.lr=5e-6

Without --config and --data the built-in recipe fine-tunes the small built-in base on the built-in reasoning tasks.
`torchrun` and `mpirun -np 2 python` start it as well. What is learned comes from --config and the overrides, how it
runs from --deepspeed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import yaml

from lift_ds.config.deepspeed import fill_ds_json, read_ds_json, settle_ds_json
from lift_ds.config.loading import ConfigError, explain_keys, load_run_config
from lift_ds.config.run import RunConfig
from lift_ds.data.survey.first_rows import FirstRows, check_first_rows
from lift_ds.ranks.launch import Launch
from lift_ds.ranks.running import run_on_ranks
from lift_ds.storage.run_record import refuse_newer_run
from lift_ds.training.inputs import RunData, open_weights, prepare
from lift_ds.training.metrics import METRICS_FILE
from lift_ds.training.run_files import ModelFolder, RunSources, SourcesError, list_sources, open_model

from .tool import quieten, tool_parser

Opened = TypeVar("Opened")
RUNS = Path("runs")
SHORTCUTS = {"model": "model.path", "data": "data.path", "output": "output", "resume": "checkpoint.resume"}


def make_parser() -> argparse.ArgumentParser:
    """The flags; every key of the run config is explained below them."""
    parser = tool_parser(__doc__, "keys for overrides and recipes:\n" + explain_keys())
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
        "--dry-run", action="store_true", help="check everything, print the resolved configuration, stop"
    )
    parser.add_argument("--local_rank", "--local-rank", type=int, help="set by the launcher; ignored")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="for example objective.method=lift2 optim.steps=300"
    )
    return parser


def read_flags(arguments: argparse.Namespace) -> dict[str, Any]:
    """The flags that stand for a key of the run config, by that key."""
    given = {key: getattr(arguments, flag) for flag, key in SHORTCUTS.items()}
    flags = {key: value for key, value in given.items() if value is not None}
    if len(flags.get("data.path", [])) == 1:
        flags["data.path"] = flags["data.path"][0]
    return flags


def choose_recipe(given: Path | None, flags: dict[str, Any], overrides: list[str]) -> Path | None:
    """The recipe that was named, or the built-in one where neither recipe nor model nor data were."""
    named = [*flags, *(override.partition("=")[0] for override in overrides)]
    if given is not None or {"data.path", "data.sources", "model.path"} & set(named):
        return given
    return Path(str(files("lift_ds") / "assets" / "reasoning.yaml"))


@dataclass(frozen=True)
class Checked:
    """What a run is started with, found good.

    Args:
        run: The run config, with its run folder settled.
        ds_json: The DeepSpeed JSON, but for what model and device decide.
        model: The model's folder, whose weights may not be there yet.
        sources: The data's files.
    """

    run: RunConfig
    ds_json: dict[str, Any]
    model: ModelFolder
    sources: RunSources


def check(arguments: argparse.Namespace, launch: Launch) -> Checked:
    """Reads both configurations, and finds what they name.

    Raises:
        ConfigError: Everything that is wrong with them, or is not there.
    """
    flags = read_flags(arguments)
    recipe = choose_recipe(arguments.config, flags, arguments.overrides)
    run, problems = load_run_config(recipe, arguments.overrides, flags)
    loaded, json_problems = read_ds_json(arguments.deepspeed)
    problems += json_problems
    run = run.model_copy(update={"output": settle_output(run)})
    model = attempt(partial(open_model, run.model.path, with_weights=False), problems)
    sources = attempt(partial(list_sources, run), problems)
    problems += find_other_run(run)
    attempt(partial(refuse_newer_run, Path(run.output)), problems)  # before this run's own record replaces that one
    if run.model.compile and run.data.packing != "none":
        packing = f"data.packing={run.data.packing}"
        problems.append(f"model.compile=true with {packing}: every pack would be compiled anew; change one of them")
    ds_json = loaded
    if not json_problems:
        ds_json, more = settle_ds_json(loaded, arguments.deepspeed, run, launch.world_size)
        problems += more
    if problems or model is None or sources is None:
        raise ConfigError(problems)
    return Checked(run, ds_json, model, sources)


def attempt(action: Callable[[], Opened], problems: list[str]) -> Opened | None:
    """What an action opens, or `None` where it cannot, which is added to the problems."""
    try:
        return action()
    except SourcesError as error:
        problems += error.problems
    except ValueError as error:
        problems.append(str(error))
    return None


def settle_output(run: RunConfig) -> str:
    """The run folder: as named, or the next number below `runs`; the last one where a run is to be resumed."""
    if run.output != "auto":
        return run.output
    numbers = [int(path.name) for path in RUNS.glob("[0-9]*") if path.name.isdigit()]
    last = max(numbers, default=0)
    return str(RUNS / f"{last if run.checkpoint.resume == 'auto' and last else last + 1:03d}")


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
    from lift_ds.training import engine
    from lift_ds.training.run import execute

    run, model = checked.run, checked.model
    if not (arguments.dry_run or run.model.from_scratch):
        model = model.fetch_weights()
    prepared = prepare(run, model, checked.sources)
    ds_json = fill_ds_json(checked.ds_json, model.config.hidden_size, engine.has_accelerator())
    first_rows = check_first_rows(prepared.data.reader, run.data.check_rows, run.data.max_skipped)
    if launch.is_main:
        print(describe(run, ds_json, launch, prepared.data, first_rows), flush=True)
    if arguments.dry_run:
        if launch.is_main:
            print(yaml.safe_dump({"run": run.model_dump(), "deepspeed": ds_json}, sort_keys=False))
        return
    source = open_weights(prepared)
    engine.start_distributed(launch)
    execute(prepared, source, ds_json, launch.is_main)


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
