"""From the flags of `tools/evaluate.py` to results: by a protocol, or with `--harness` by lm-evaluation-harness."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import torch
from pydantic import ValidationError

from lift_ds.evaluation.asking.answering import Answerer
from lift_ds.evaluation.asking.protocol import load_protocol
from lift_ds.evaluation.asking.results import open_folder, write_json, write_results
from lift_ds.evaluation.asking.run import TaskPlan, evaluate, plan_task, task_problems, task_scorers
from lift_ds.evaluation.asking.samples import SampleLog
from lift_ds.evaluation.harness.run import require_harness, run_harness
from lift_ds.evaluation.harness.settings import HarnessSettings, describe
from lift_ds.evaluation.judging import Problem
from lift_ds.evaluation.sandbox import Limits
from lift_ds.evaluation.score_file import ScoringPool, check_task
from lift_ds.models.families import read_config
from lift_ds.models.weights import resolve_folder
from lift_ds.ranks.launch import Launch
from lift_ds.ranks.shares import Ranks
from lift_ds.sampling.settings import SamplingSettings
from lift_ds.training.inference import load_cut, load_whole, weight_hashes

from .answer_flags import given_settings, own_blocks, process_of, with_flags
from .evaluate_tables import LiveTable, print_results, wide_console
from .tool import check_counts, writing

HARNESS_RESULTS = "harness.json"


def check_arguments(arguments: argparse.Namespace) -> None:
    """Refuses what makes no sense without looking at files, with a ValueError."""
    if arguments.model is None or not arguments.tasks:
        raise ValueError("--model and --tasks are needed (or --compare with two folders).")
    check_counts(arguments, "limit", "samples", "batch_size", "workers")
    doubled = sorted({task for task in arguments.tasks if arguments.tasks.count(task) > 1})
    if doubled:
        raise ValueError(f"--tasks: {', '.join(doubled)} stands there twice.")
    if arguments.adapters is not None and arguments.deepspeed is not None:
        raise ValueError("--adapters with --deepspeed: merge them first, with tools/merge_lora.py.")


def data_files(flags: Sequence[str], tasks: Sequence[str]) -> dict[str, str]:
    """The file of each task that has one; a ValueError where a flag is not TASK=FILE of one task that is evaluated."""
    paths: dict[str, str] = {}
    for flag in flags:
        task, has_path, path = flag.partition("=")
        if not has_path or not path:
            raise ValueError(f"--data {flag}: TASK=FILE is needed.")
        if task not in tasks:
            raise ValueError(f"--data {flag}: {task} is not evaluated; --tasks are {', '.join(tasks)}.")
        if task in paths:
            raise ValueError(f"--data {flag}: {task} has {paths[task]} already.")
        paths[task] = path
    return paths


def check_agreement(plans: Sequence[TaskPlan], ranks: Ranks) -> None:
    """Raises a ValueError on every rank where some read other problems or another protocol on their own machines."""
    first, *others = ranks.gather_objects({plan.name: plan.settings() for plan in plans})
    for rank, theirs in enumerate(others, start=1):
        for task in first:
            differ = [name for name, value in first[task].items() if theirs[task][name] != value]
            if differ:
                raise ValueError(
                    f"{task}: rank {rank} has other problems or another protocol than rank 0 ({', '.join(differ)} "
                    "differ); every machine needs the same files."
                )


def environment_of(arguments: argparse.Namespace, ranks: Ranks) -> dict[str, Any]:
    """What decides an evaluation's speed, and where things were."""
    on_gpu = ranks.device.type == "cuda"
    return {
        **{name: getattr(arguments, name) for name in ("model", "adapters", "protocol", "data", "batch_size")},
        "world_size": ranks.world_size,
        "device": torch.cuda.get_device_name(ranks.device) if on_gpu else "cpu",
        "deepspeed": None if arguments.deepspeed is None else str(arguments.deepspeed),
        **{name: version(name) for name in ("lift_ds", "torch", "transformers")},
    }


def default_output(arguments: argparse.Namespace, protocol: str) -> Path:
    """`evaluations/001-export-lift` for the model `runs/001/export`."""
    parts = [part for part in Path(arguments.model.replace(":", "-")).parts[-2:] if part not in ("/", ".", "..")]
    return Path("evaluations") / "-".join([*parts, Path(protocol).stem])


def load_model(arguments: argparse.Namespace, launch: Launch) -> tuple[Answerer, Ranks]:
    """The model of the flags, whole on every rank or cut over them, as they ask it; or a ValueError."""
    if arguments.deepspeed is not None:
        answerer, ranks = load_cut(arguments.model, arguments.deepspeed, launch)
    else:
        answerer, ranks = load_whole(arguments.model, arguments.adapters, launch)
    answerer, lines = with_flags(answerer, arguments.system, arguments.chat_template, arguments.adapters)
    if launch.is_main:
        print("".join(f"{line}\n" for line in lines), end="", flush=True)
    return answerer, ranks


def run_evaluation(arguments: argparse.Namespace, launch: Launch) -> None:
    """Checks, answers, scores, writes; a ValueError where flags, data or model are wrong."""
    protocol = load_protocol(arguments.protocol)
    files = data_files(arguments.data, arguments.tasks)
    tasks: dict[str, tuple[list[Problem], SamplingSettings, list[str]]] = {}
    block_size = own_blocks(arguments.model)
    for task in arguments.tasks:
        problems = task_problems(task, protocol, files.get(task), arguments.limit)
        scorers = task_scorers(task, arguments.scorers or protocol.scorers)
        for scorer in scorers:
            check_task(task, scorer)
        decoding = protocol.tasks[task].decoding or protocol.decoding
        tasks[task] = (problems, process_of(arguments, decoding, protocol.stop_early, block_size), scorers)
    answerer, ranks = load_model(arguments, launch)
    plans = [
        plan_task(task, problems, protocol, process, arguments.samples, scorers, answerer)
        for task, (problems, process, scorers) in tasks.items()
    ]
    check_agreement(plans, ranks)
    settings = {
        "weights": weight_hashes(arguments.model, arguments.adapters, ranks),
        "model_type": read_config(resolve_folder(arguments.model)).model_type,
        "dtype": str(answerer.model.dtype).removeprefix("torch."),
        "seed": arguments.seed,
        "tasks": {plan.name: plan.settings() for plan in plans},
    }
    output = arguments.output or default_output(arguments, arguments.protocol)
    log = SampleLog(output / "samples.jsonl")
    with ExitStack() as held:

        def claim_output() -> None:
            with writing(output, "--output"):
                open_folder(output, settings)
                held.enter_context(log.locked())

        ranks.on_main(claim_output)
        given = (plans, answerer, ranks, arguments.batch_size, arguments.seed, log)
        if not launch.is_main:
            evaluate(*given, None, lambda progress: None)
            return
        with ScoringPool(Limits(), arguments.workers) as pool, LiveTable(plans) as table:
            done = evaluate(*given, pool, table.show)
            results = write_results(output, settings, environment_of(arguments, ranks), done)
        print_results(results, output, wide_console())


def run_harness_tasks(arguments: argparse.Namespace, launch: Launch) -> None:
    """Runs lm-evaluation-harness, prints its table, writes results and samples; errors are as of `run_evaluation`."""
    require_harness()
    output = arguments.output or default_output(arguments, "harness")
    try:
        settings = HarnessSettings(
            **given_settings(arguments),
            seed=arguments.seed,
            batch_size=arguments.batch_size,
            mc_num=arguments.mc_num,
            progress=str(output / "progress"),
        )
    except ValidationError as error:
        raise ValueError("; ".join(describe(details) for details in error.errors())) from error
    answerer, ranks = load_model(arguments, launch)

    def claim_output() -> None:  # before the work of hours
        if (output / HARNESS_RESULTS).exists():
            raise ValueError(f"{output / HARNESS_RESULTS} exists; remove it, or name another --output.")
        with writing(output, "--output"):
            output.mkdir(parents=True, exist_ok=True)
            TemporaryFile(dir=output).close()

    ranks.on_main(claim_output)
    results = run_harness(
        answerer,
        ranks,
        settings,
        arguments.tasks,
        name=arguments.model,
        identity=json.dumps([weight_hashes(arguments.model, arguments.adapters, ranks), arguments.deepspeed is None]),
        include_path=arguments.include_path,
        limit=arguments.limit,
        num_fewshot=arguments.num_fewshot,
        apply_chat_template=arguments.apply_chat_template,
    )
    if results is None:
        return
    from lm_eval.utils import handle_non_serializable, make_table

    print(make_table(results))
    write_json(output / HARNESS_RESULTS, json.loads(json.dumps(results, default=handle_non_serializable)))
    num_kept = results["config"]["num_batches_kept"]
    print(f"results: {output / HARNESS_RESULTS}" + (f" ({num_kept} batches from before a cut)" if num_kept else ""))
