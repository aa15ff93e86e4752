"""What a trained folder answers under all decodings, on all ranks: `answers.py FOLDER ASKED.json OUT.json`."""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

from lift_ds.evaluation.asking.solve import builtin_questions, solve_questions
from lift_ds.ranks.launch import Launch
from lift_ds.ranks.running import run_on_ranks
from lift_ds.sampling.settings import SamplingSettings, checked_settings
from lift_ds.training.inference import load_whole


def settings_of(decoding: dict[str, Any], gen_length: int) -> SamplingSettings:
    """A decoding of the plan for answers of a length."""
    given = {"gen_length": gen_length, "block_length": decoding.get("block_length", gen_length)}
    if "threshold" in decoding:
        return checked_settings(**given, threshold=decoding["threshold"], stop_early=True)
    return checked_settings(**given, steps=gen_length // decoding["tokens"], stop_early=True)


def answer(folder: str, asked: dict[str, Any], output: Path, launch: Launch) -> None:
    """Writes, by decoding, which items are solved (`1` and `0`, in their order) and the forwards of an answer."""
    answerer, ranks = load_whole(folder, None, launch)
    questions = builtin_questions(asked["items"], asked["items_seed"], asked["task"])
    found = {}
    for name, decoding in asked["decodings"].items():
        settings = settings_of(decoding, asked["gen_length"])
        report = solve_questions(answerer.model, answerer.encoder, questions, settings, ranks)
        found[name] = {
            "solved": "".join("1" if each else "0" for each in report.solved),
            "unparsed": report.total.parse_failure_rate,
            "forwards": report.total.forwards_per_item,
            "seconds": report.seconds,
        }
    if launch.is_main:
        output.write_text(json.dumps(found))


def main() -> None:
    """Entry point of every rank."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("asked", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    asked = json.loads(arguments.asked.read_text())
    run_on_ranks(partial(answer, arguments.folder, asked, arguments.output))


if __name__ == "__main__":
    main()
