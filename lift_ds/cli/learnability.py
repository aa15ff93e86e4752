"""Draws how surely common and rare tokens are predicted at each mask level.

Writes learnability.html (self-contained), .png and .csv: mean p(gold) and confidence of masked tokens by how often they
occur and how much is masked. A run folder is compared with the model it began from. With --memory it writes instead
which training rows stay hard, hardest_rows.html and .csv: where to look for wrong answers and noise.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, cast

from lift_ds.config.loading import ConfigError, known_keys, load_run_config
from lift_ds.config.run import RunConfig
from lift_ds.storage.run_record import RUN_FILE, read_run

from .tool import StrictParser, flag, tool

DEFAULT_ROWS = 300
Measured = tuple[dict[str, Any], Any, Path]  # by label; the tokenizer; where the report goes


def resolve(arguments: argparse.Namespace) -> tuple[RunConfig, dict[str, str], Path]:
    """The config whose data is measured, the models by label, and where the report goes, or a ConfigError."""
    folder = Path(arguments.model)
    flags: dict[str, Any] = {}
    shown = {}
    models = {arguments.compare: arguments.compare} if arguments.compare else {}
    recorded: dict[str, Any] = {}
    if (folder / RUN_FILE).is_file():
        recorded = read_run(folder)["run"]
        if not (folder / "export").is_dir():
            raise ConfigError([f"{folder}: no export; make one with tools/zero_to_hf.py and name its folder"])
        if not models and not recorded["model"]["from_scratch"]:
            models = {f"before ({recorded['model']['path']})": recorded["model"]["path"]}
        models[f"after ({folder})"] = str(folder / "export")
        flags |= {f"data.{name}": value for name, value in recorded["data"].items()}
        flags["eval.path"] = recorded["eval"]["path"]
        flags.pop("data.path" if flags.get("data.sources") else "data.sources", None)
        flags["seed"] = recorded["seed"]
        if not are_apart(recorded):
            flags["eval.rows"] = recorded["eval"]["rows"]
    else:
        models[arguments.model] = arguments.model
        flags |= taught_settings(arguments.model)
    if arguments.data:
        flags |= {"data.path": arguments.data if len(arguments.data) > 1 else arguments.data[0], "eval.path": None}
        flags.pop("data.sources", None)
        shown["data.path"] = " ".join(f"--data {path}" for path in arguments.data)
    elif not recorded:
        raise ConfigError(["--data is needed for a model: files, or builtin:reasoning"])
    flags["eval.rows"] = arguments.rows or flags.get("eval.rows") or DEFAULT_ROWS
    flags["model.path"] = list(models.values())[-1]
    run, problems = load_run_config(None, arguments.overrides, flags, shown)
    if problems:
        raise ConfigError(problems)
    return run, models, arguments.output or (folder if recorded else Path()) / "learnability"


def taught_settings(model: str) -> dict[str, Any]:
    """The keys of `data` that a model's folder says it was taught with; said, because other rows may want others."""
    from lift_ds.data.text.chat_format import KEYS, read_format
    from lift_ds.models.weights import resolve_folder

    taught = read_format(resolve_folder(model, with_weights=False))
    known = known_keys()
    settings = {key: getattr(taught, name) for name, key in KEYS.items() if taught is not None and key in known}
    if settings:
        print(f"as {model} was taught: {', '.join(f'{key}={value}' for key, value in settings.items())}")
    return settings


def are_apart(recorded: dict[str, Any]) -> bool:
    """Whether a run's held-out rows have a source of their own, so that more of them are no trained rows."""
    sources = recorded["data"].get("sources") or [recorded["data"]]
    paths = [
        path for source in sources for path in ([source["path"]] if isinstance(source["path"], str) else source["path"])
    ]
    return bool(recorded["eval"]["path"]) or all(path.startswith("builtin:") for path in paths)


def measure_buffers(arguments: argparse.Namespace) -> Measured:
    """A run's difficulty tables; a ConfigError where it is no run, or other arguments say what to measure."""
    folder = Path(arguments.model)
    if not (folder / RUN_FILE).is_file():
        raise ConfigError([f"{folder}: --buffers needs a run folder; {RUN_FILE} is not there"])
    recorded = read_run(folder)["run"]
    if arguments.data or arguments.compare or arguments.rows or arguments.overrides:
        raise ConfigError(["--buffers measures no model: remove --data, --compare, --rows and overrides"])
    from lift_ds.evaluation.learnability import from_difficulty
    from lift_ds.models.vocabulary import load_tokenizer
    from lift_ds.models.weights import resolve_folder
    from lift_ds.storage.manifest import read_manifest, step_of
    from lift_ds.training.buffers import read_table

    checkpoints = sorted((folder / "checkpoints").glob("step-*"), key=step_of)
    if not checkpoints:
        raise ConfigError([f"{folder}: no checkpoint"])
    measured = {}
    for checkpoint in dict.fromkeys((checkpoints[0], checkpoints[-1])):
        table = read_table(checkpoint)
        measured[f"step {read_manifest(checkpoint).step}"] = from_difficulty(table.sums, table.counts)
    tokenizer = load_tokenizer(resolve_folder(recorded["model"]["path"], with_weights=False))
    return measured, tokenizer, arguments.output or folder / "learnability"


def report_memory(arguments: argparse.Namespace) -> None:
    """Writes a run's hardest rows; a ConfigError where it is no run, or other arguments say what to measure."""
    folder = Path(arguments.model)
    if arguments.data or arguments.compare or arguments.rows or arguments.buffers:
        raise ConfigError(["--memory reads a run: remove --data, --compare, --rows and --buffers"])
    if not (folder / RUN_FILE).is_file():
        raise ConfigError([f"{folder}: --memory needs a run folder; {RUN_FILE} is not there"])
    recorded = read_run(folder)["run"]
    flags = {f"data.{name}": value for name, value in recorded["data"].items()}
    flags |= {"model.path": recorded["model"]["path"], "seed": recorded["seed"], "eval.rows": 0, "eval.path": None}
    flags.pop("data.path" if flags.get("data.sources") else "data.sources", None)
    run, problems = load_run_config(None, arguments.overrides, flags, {})
    if problems:
        raise ConfigError(problems)
    from lift_ds.evaluation.hardest import NUM_SHOWN, forgotten, rank_rows, write_hardest
    from lift_ds.models.vocabulary import load_tokenizer
    from lift_ds.storage.manifest import step_of
    from lift_ds.training.inputs import prepare
    from lift_ds.training.memory_files import memory_files, read_rows

    found = sorted((folder / "checkpoints").glob("step-*"), key=step_of)
    checkpoints = [checkpoint for checkpoint in found if memory_files(checkpoint)]
    if not checkpoints:
        raise ConfigError([f"{folder}: no checkpoint with a difficulty memory; objective.scoring=memory keeps one"])
    rows = rank_rows(read_rows(checkpoints[-1]))
    earlier = {row.sample_id: row.hardness for row in rank_rows(read_rows(checkpoints[0]))} if checkpoints[1:] else {}
    prepared = prepare(run)
    wanted = {row.sample_id for row in (*rows[:NUM_SHOWN], *forgotten(rows, earlier)[:NUM_SHOWN])}
    documents = {each.sample_id: each for each in prepared.data.reader.by_sample_id(sorted(wanted))}
    places = {row.sample_id: prepared.data.reader.where(row.sample_id) for row in rows}
    tokenizer = load_tokenizer(prepared.folder)
    assert tokenizer is not None  # prepare() has refused a folder without one
    output = arguments.output or folder / "learnability"
    write_hardest(output, f"Hardest rows of {folder}", rows, earlier, documents, places, tokenizer)
    print(f"{output}/hardest_rows.html, .csv: {len(rows)} rows")


def measure_models(arguments: argparse.Namespace) -> Measured:
    """The models, on the held-out documents of the config; errors are those of `resolve` and of what it names."""
    run, models, output = resolve(arguments)
    import torch

    from lift_ds.evaluation.learnability import measure
    from lift_ds.models.head import MaskedDiffusionModel
    from lift_ds.models.weights import load_pretrained
    from lift_ds.training.inputs import prepare

    documents = prepare(run).data.held_out
    measured = {}
    for label, path in models.items():
        model, tokenizer = load_pretrained(path)
        on_gpu = torch.cuda.is_available()
        torch.nn.Module.to(model, "cuda" if on_gpu else "cpu", None if on_gpu else torch.float32)
        print(f"measuring {label} on {len(documents)} rows", flush=True)
        measured[label] = measure(cast(MaskedDiffusionModel, model), documents, arguments.batch_size, run.seed)
    assert tokenizer is not None  # prepare() has refused a folder without one
    return measured, tokenizer, output


@tool(
    __doc__,
    flag("model", help="run folder, model folder, hub name or builtin:base"),
    flag("--compare", help="model to compare with, measured first; a run's own start where not given"),
    flag(
        "--data", action="append", help="file or builtin:<name>, more than once for several; default: a run's own data"
    ),
    flag(
        "--rows",
        type=int,
        help="rows that are measured; default: 300, or as many as the run held out of its own training rows",
    ),
    flag(
        "--buffers",
        action="store_true",
        help="draw a run's difficulty tables, of its oldest and its newest checkpoint, instead of measuring a model",
    ),
    flag("--memory", action="store_true", help="list the rows that stayed hard in a run with objective.scoring=memory"),
    flag("--batch-size", type=int, default=32, help="rows of one forward"),
    flag("--output", type=Path, help="folder; RUN/learnability or ./learnability where not given"),
    flag("overrides", nargs="*", metavar="key=value", help="such as data.columns.prompt=question"),
    kind=StrictParser,
)
def main(arguments: argparse.Namespace) -> None:
    """Writes the report that the flags ask for."""
    if arguments.memory:
        report_memory(arguments)
        return
    try:
        from lift_ds.evaluation.learnability_page import write_report
    except ImportError as error:
        raise ValueError(f"{error}; the report needs matplotlib: pip install 'lift_ds[report]'") from error
    measured, tokenizer, output = (measure_buffers if arguments.buffers else measure_models)(arguments)
    write_report(output, measured, tokenizer)
    print(f"{output}/learnability.html, .png, .csv")
