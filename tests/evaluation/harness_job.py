"""Tasks of the harness on a launcher's ranks: `torchrun harness_job.py TASK_DIR OUTPUT [DS_JSON]`; rank 0 writes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from lift_ds.evaluation.answering import Answerer
from lift_ds.evaluation.harness.run import run_harness
from lift_ds.evaluation.harness.settings import HarnessSettings
from lift_ds.evaluation.ranks import Ranks
from lift_ds.training.cluster import read_launch
from lift_ds.training.collectives import leave
from lift_ds.training.inference import load_cut, load_whole

TASKS = ["tiny_answers", "tiny_choices", "tiny_words", "tiny_texts"]


def run_tasks(answerer: Answerer, ranks: Ranks, task_dir: Path) -> dict[str, Any] | None:
    """The results of all tasks; batches of 3 rows, so that ranks get unequal shares."""
    settings = HarnessSettings(batch_size=3, mc_num=12, threshold=0.9)
    found = run_harness(
        answerer, ranks, settings, TASKS, include_path=task_dir, include_defaults=False, apply_chat_template=True
    )
    return None if found is None else {name: found[name] for name in ("results", "samples", "config")}


def main(task_dir: str, output: str, ds_json: str | None = None) -> None:
    """Loads the built-in base whole, or cut over the ranks, and writes results."""
    launch = read_launch()
    loaded = (
        load_whole("builtin:base", None, launch) if ds_json is None else load_cut("builtin:base", Path(ds_json), launch)
    )
    result = run_tasks(*loaded, Path(task_dir))
    if result is not None:
        Path(output).write_text(json.dumps(result, default=str))
    leave(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
