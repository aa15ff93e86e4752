"""Answers the problems of reasoning tasks, and scores the answers.

    python tools/evaluate.py --model runs/001/export --protocol clean --tasks builtin:countdown builtin:sudoku
    deepspeed tools/evaluate.py --model GSAI-ML/LLaDA-8B-Instruct --tasks gsm8k math500
    python tools/evaluate.py --compare evaluations/first evaluations/second --html flips.html

Under `deepspeed` or `torchrun` every rank has the whole model and its share of the problems; with --deepspeed JSON the
model is cut over the ranks (ZeRO-3). The same command again goes on where an evaluation was cut off.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from lift_ds.evaluation.asking.results import write_json
from lift_ds.evaluation.compare import compare, comparison_page, tasks_alone
from lift_ds.ranks.launch import Launch
from lift_ds.ranks.meeting import meet
from lift_ds.ranks.running import run_on_ranks

from .answer_flags import FORMAT_FLAGS, sampling_flags
from .evaluate_run import check_arguments, run_evaluation, run_harness_tasks
from .evaluate_tables import print_comparison, wide_console
from .tool import LOCAL_RANK, check_writable, flag, quieten, tool_parser

# Flags of one mode, which the others would ignore.
COMPARISON_ONLY, HARNESS_ONLY = ("html", "json"), ("include_path", "num_fewshot", "apply_chat_template", "mc_num")
EVALUATION_ONLY = ("data", "scorers", "samples", "protocol", "workers")
ANSWERS_ONLY = ("model", "adapters", "tasks", "output", "deepspeed", "limit", "harness", "system", "chat_template")
LENGTHS = dict.fromkeys(("gen_length", "block_length"), "the protocol's or the harness's")
FLAGS = (
    flag("--model", help="model folder, hub name or builtin:base"),
    flag("--adapters", help="folder of LoRA adapters in PEFT's format; they are not merged"),
    flag("--tasks", nargs="+", default=[], help="tasks of the protocol"),
    flag("--protocol", default="lift", help="lift (as published), clean (this project's) or a YAML file"),
    flag("--data", action="append", default=[], metavar="TASK=FILE", help="a task's rows; default: hub"),
    flag("--scorers", nargs="+", help="reference, strict; default: the protocol's"),
    flag("--limit", type=int, help="the first so many problems of each task"),
    flag("--samples", type=int, default=1, help="answers to each problem, for pass@k"),
    *sampling_flags(**LENGTHS, steps="the protocol's tokens a step"),
    *FORMAT_FLAGS,
    flag("--output", type=Path, help="folder; default: evaluations/MODEL-PROTOCOL"),
    flag("--deepspeed", type=Path, metavar="JSON", help="cut the model over the ranks, as ZeRO-3 does"),
    flag("--workers", type=int, default=2, help="answers that are scored at a time"),
    flag("--harness", action="store_true", help="--tasks are those of lm-evaluation-harness"),
    flag("--include-path", type=Path, help="with --harness: folder with task files of one's own"),
    flag("--num-fewshot", type=int, help="with --harness: examples before each question"),
    flag("--apply-chat-template", action="store_true", help="with --harness: requests are chats"),
    flag("--mc-num", type=int, default=128, help="with --harness: masks of a likelihood's estimate"),
    flag("--compare", nargs=2, type=Path, metavar="FOLDER", help="compare two evaluations"),
    flag("--html", type=Path, help="with --compare: page with the answers that flipped"),
    flag("--json", type=Path, help="with --compare: its figures"),
    LOCAL_RANK,
)


def check_flags(arguments: argparse.Namespace) -> None:
    """Refuses flags of another mode, which would be ignored, with a ValueError."""
    if arguments.compare is not None:
        mode, others = "--compare", [*ANSWERS_ONLY, *HARNESS_ONLY, *EVALUATION_ONLY]
        others.remove("scorers")
    elif arguments.harness:
        mode, others = "--harness", [*COMPARISON_ONLY, *EVALUATION_ONLY]
    else:
        mode, others = "an evaluation of tasks by protocol", [*COMPARISON_ONLY, *HARNESS_ONLY]
    if arguments.harness and not arguments.apply_chat_template and (arguments.system or arguments.chat_template):
        raise ValueError("--system, --chat-template: with --harness, only --apply-chat-template makes chats.")
    default = tool_parser(__doc__, FLAGS).get_default
    given = [f"--{name.replace('_', '-')}" for name in others if getattr(arguments, name) != default(name)]
    if given:
        raise ValueError(f"{', '.join(given)}: no flag of {mode}; remove it.")


def run_comparison(arguments: argparse.Namespace) -> None:
    """Compares two evaluations; a ValueError where they cannot be, an OSError where a file cannot be written."""
    first, second = arguments.compare
    for name in ("html", "json"):
        if getattr(arguments, name) is not None:
            check_writable(getattr(arguments, name), f"--{name}")
    if arguments.scorers and len(arguments.scorers) > 1:
        raise ValueError("--compare takes one of --scorers.")
    comparisons = compare(first, second, arguments.scorers[0] if arguments.scorers else None, arguments.seed)
    labels = (str(first), str(second))
    print_comparison(comparisons, labels, wide_console())
    for task in tasks_alone(first, second):
        print(f"{task}: not in both; not compared")
    if arguments.html is not None:
        arguments.html.write_text(comparison_page(labels, comparisons), encoding="utf-8", errors="replace")
        print(f"page: {arguments.html}")
    if arguments.json is not None:
        write_json(arguments.json, [asdict(comparison) for comparison in comparisons])


def run_mode(arguments: argparse.Namespace, launch: Launch) -> None:
    """Does what the flags ask for; see the functions that it calls for its errors."""
    check_flags(arguments)
    if arguments.compare is not None:
        if launch.is_main:
            run_comparison(arguments)
        return
    quieten(launch.is_main)
    check_arguments(arguments)
    if launch.world_size > 1:
        meet(launch)  # before anything slow: a rank may be missing, or the port taken
    (run_harness_tasks if arguments.harness else run_evaluation)(arguments, launch)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; exits with 2 where something is missing or wrong."""
    arguments = tool_parser(__doc__, FLAGS).parse_args(argv)
    run_on_ranks(partial(run_mode, arguments), "stopped; the same command goes on")


if __name__ == "__main__":
    main()
