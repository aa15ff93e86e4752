"""`tools/evaluate.py --harness`: any task of lm-evaluation-harness, with the same flags."""

from __future__ import annotations

import argparse
import json
from typing import Any

from pydantic import ValidationError

from lift_ds.evaluation.harness.run import require_harness, run_harness
from lift_ds.evaluation.harness.settings import HarnessSettings, describe
from lift_ds.evaluation.results import write_json
from lift_ds.training.cluster import Launch

from .evaluate_run import default_output, load_model

SAME_NAMES = (
    "gen_length", "block_length", "steps", "threshold", "factor", "remasking", "temperature", "top_p", "cfg_scale",
    "cache", "eos", "seed", "batch_size", "mc_num",
)  # fmt: skip
NOT_ITS_OWN: dict[str, Any] = {"data": [], "scorers": None, "samples": 1}
"""Flags that the harness has no use for, with the values of flags that are not given."""


def harness_settings(arguments: argparse.Namespace) -> HarnessSettings:
    """How the model answers and scores.

    Raises:
        ValueError: A flag is out of range, or is none of the harness's.
    """
    unused = [name for name, value in NOT_ITS_OWN.items() if getattr(arguments, name) != value]
    if unused:
        raise ValueError(f"--{unused[0]} with --harness: its tasks bring their data and scores; remove it.")
    try:
        return HarnessSettings(**{name: getattr(arguments, name) for name in SAME_NAMES})
    except ValidationError as error:
        raise ValueError("; ".join(describe(details) for details in error.errors())) from error


def run_harness_tasks(arguments: argparse.Namespace, launch: Launch) -> None:
    """Runs the tasks, prints the harness's table, writes its results and samples.

    Raises:
        ValueError: A flag, a task or the model is wrong.
        RuntimeError: The harness is not installed.
    """
    require_harness()
    settings = harness_settings(arguments)
    output = arguments.output or default_output(arguments, "harness")
    answerer, ranks = load_model(arguments, launch)
    found = run_harness(
        answerer,
        ranks,
        settings,
        arguments.tasks,
        name=arguments.model,
        include_path=arguments.include_path,
        limit=arguments.limit,
        num_fewshot=arguments.num_fewshot,
        apply_chat_template=arguments.apply_chat_template,
    )
    if found is None:
        return
    from lm_eval.utils import handle_non_serializable, make_table

    print(make_table(found))
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "harness.json", plain(found, handle_non_serializable))
    print(f"results: {output / 'harness.json'}")


def plain(found: dict[str, Any], convert: Any) -> Any:
    """Results as JSON has them."""
    return json.loads(json.dumps(found, default=convert))
