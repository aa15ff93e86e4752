"""`tools/evaluate.py --harness`: any task of lm-evaluation-harness, with the same flags."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from tempfile import TemporaryFile

from pydantic import ValidationError

from lift_ds.evaluation.asking.results import write_json
from lift_ds.evaluation.harness.run import require_harness, run_harness
from lift_ds.evaluation.harness.settings import HarnessSettings, describe
from lift_ds.ranks.launch import Launch
from lift_ds.training.inference import weight_hashes

from .answer_flags import given_settings
from .evaluate_run import default_output, load_model
from .tool import writing

RESULTS = "harness.json"
PROGRESS = "progress"


def harness_settings(arguments: argparse.Namespace, output: Path) -> HarnessSettings:
    """How the model answers and scores, and where what it computed is kept.

    Raises:
        ValueError: A flag is out of range.
    """
    try:
        return HarnessSettings(
            **given_settings(arguments),
            seed=arguments.seed,
            batch_size=arguments.batch_size,
            mc_num=arguments.mc_num,
            progress=str(output / PROGRESS),
        )
    except ValidationError as error:
        raise ValueError("; ".join(describe(details) for details in error.errors())) from error


def run_harness_tasks(arguments: argparse.Namespace, launch: Launch) -> None:
    """Runs the tasks, prints the harness's table, writes its results and samples.

    Raises:
        ValueError: A flag, a task or the model is wrong.
        RuntimeError: The harness is not installed.
    """
    require_harness()
    output = arguments.output or default_output(arguments, "harness")
    settings = harness_settings(arguments, output)
    answerer, ranks = load_model(arguments, launch)
    ranks.on_main(lambda: open_output(output))
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
    write_json(output / RESULTS, json.loads(json.dumps(results, default=handle_non_serializable)))
    num_kept = results["config"]["num_batches_kept"]
    print(f"results: {output / RESULTS}" + (f" ({num_kept} batches from before a cut)" if num_kept else ""))


def open_output(folder: Path) -> None:
    """Makes the folder of the results, and tries to write there, before the work of hours.

    Raises:
        ValueError: It has results already, or cannot be written to.
    """
    if (folder / RESULTS).exists():
        raise ValueError(f"{folder / RESULTS} exists; remove it, or name another --output.")
    with writing(folder, "--output"):
        folder.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=folder).close()
