"""`tools/evaluate.py`: answers the problems of reasoning tasks on one rank or many, and scores them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from lift_ds.evaluation.compare import compare
from lift_ds.evaluation.compare_page import comparison_page
from lift_ds.evaluation.results import write_json
from lift_ds.training.cluster import Launch, read_launch
from lift_ds.training.collectives import has_started, leave

from .evaluate_run import run_evaluation
from .evaluate_tables import print_comparison, wide_console
from .sampling_flags import add_sampling_flags
from .tool import quieten

DESCRIPTION = """Answers the problems of reasoning tasks, and scores the answers.

    python tools/evaluate.py --model runs/001/export --protocol clean --tasks builtin:countdown builtin:sudoku
    deepspeed tools/evaluate.py --model GSAI-ML/LLaDA-8B-Instruct --tasks gsm8k math500
    python tools/evaluate.py --compare evaluations/first evaluations/second --html flips.html

Under `deepspeed` or `torchrun` every rank has the whole model and its share of the problems; with --deepspeed JSON the
model is cut over the ranks (ZeRO-3). The same command again goes on where an evaluation was cut off.
"""


def make_parser() -> argparse.ArgumentParser:
    """The flags."""
    parser = argparse.ArgumentParser(
        prog="evaluate.py", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="model folder, hub name or builtin:base")
    parser.add_argument("--adapters", help="folder of LoRA adapters in PEFT's format; they are not merged")
    parser.add_argument("--tasks", nargs="+", default=[], help="tasks of the protocol")
    parser.add_argument("--protocol", default="lift", help="lift (as published), clean (this project's) or a YAML file")
    parser.add_argument("--data", action="append", default=[], metavar="TASK=FILE", help="a task's rows; default: hub")
    parser.add_argument("--scorers", nargs="+", help="reference, strict; default: the protocol's")
    parser.add_argument("--limit", type=int, help="the first so many problems of each task")
    parser.add_argument("--samples", type=int, default=1, help="answers to each problem, for pass@k")
    add_sampling_flags(parser, None, None, "the protocol's tokens a step")
    parser.add_argument("--output", type=Path, help="folder; default: evaluations/MODEL-PROTOCOL")
    parser.add_argument("--deepspeed", type=Path, metavar="JSON", help="cut the model over the ranks, as ZeRO-3 does")
    parser.add_argument("--workers", type=int, default=2, help="answers that are scored at a time")
    parser.add_argument("--compare", nargs=2, type=Path, metavar="FOLDER", help="compare two evaluations")
    parser.add_argument("--html", type=Path, help="with --compare: page with the answers that flipped")
    parser.add_argument("--json", type=Path, help="with --compare: its figures")
    parser.add_argument("--local_rank", "--local-rank", type=int, help="set by the launcher; ignored")
    return parser


def run_comparison(arguments: argparse.Namespace) -> None:
    """Compares two evaluations.

    Raises:
        ValueError: They cannot be compared.
        OSError: The page or the figures cannot be written.
    """
    first, second = arguments.compare
    if arguments.scorers and len(arguments.scorers) > 1:
        raise ValueError("--compare takes one of --scorers.")
    found = compare(first, second, arguments.scorers[0] if arguments.scorers else None, arguments.seed)
    labels = (str(first), str(second))
    print_comparison(found, labels, wide_console())
    if arguments.html is not None:
        arguments.html.write_text(comparison_page(labels, found), encoding="utf-8", errors="replace")
        print(f"page: {arguments.html}")
    if arguments.json is not None:
        write_json(arguments.json, [asdict(each) for each in found])


def run_tool(arguments: argparse.Namespace, launch: Launch) -> None:
    """Does what the flags ask for; see the functions that it calls for its errors."""
    if arguments.compare is not None:
        if launch.is_main:
            run_comparison(arguments)
        return
    quieten(launch.is_main)
    run_evaluation(arguments, launch)
    if has_started():
        leave(0)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; exits with 2 where something is missing or wrong."""
    arguments = make_parser().parse_args(argv)
    try:
        launch = read_launch()
    except RuntimeError as error:
        sys.exit(f"error: {error}")
    try:
        run_tool(arguments, launch)
    except (ValueError, RuntimeError, OSError) as error:
        if launch.is_main or isinstance(error, OSError):  # else all ranks find the same
            print(f"error: {error}", file=sys.stderr, flush=True)
        if has_started():
            leave(2)
        sys.exit(2)


if __name__ == "__main__":
    main()
