"""Tasks of the harness on a launcher's ranks: rank 0 writes."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from lift_ds.evaluation.asking.answering import Answerer
from lift_ds.evaluation.harness.run import run_harness
from lift_ds.evaluation.harness.settings import HarnessSettings
from lift_ds.ranks.launch import read_launch
from lift_ds.ranks.running import leave
from lift_ds.ranks.shares import Ranks
from lift_ds.training.inference import load_cut, load_whole

TASKS = ["tiny_answers", "tiny_choices", "tiny_words", "tiny_texts"]


def run_tasks(
    answerer: Answerer, ranks: Ranks, task_dir: Path, progress: Path | None = None, identity: str = "base"
) -> dict[str, Any] | None:
    """The results of all tasks; batches of 3 rows, so that ranks get unequal shares."""
    kept = None if progress is None else str(progress)
    settings = HarnessSettings(batch_size=3, mc_num=12, threshold=0.9, progress=kept)
    found = run_harness(
        answerer, ranks, settings, TASKS, identity=identity, include_path=task_dir, include_defaults=False,
        apply_chat_template=True,
    )  # fmt: skip
    return None if found is None else {name: found[name] for name in ("results", "samples", "config")}


def main() -> None:
    """Loads the built-in base whole, or cut over the ranks, and writes results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task_dir", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--deepspeed", type=Path)
    parser.add_argument("--progress", type=Path)
    arguments = parser.parse_args()
    launch = read_launch()
    if arguments.deepspeed is None:
        loaded = load_whole("builtin:base", None, launch)
    else:
        loaded = load_cut("builtin:base", arguments.deepspeed, launch)
    result = run_tasks(*loaded, arguments.task_dir, arguments.progress)
    if result is not None:
        arguments.output.write_text(json.dumps(result, default=str))
    leave(0)


if __name__ == "__main__":
    main()
