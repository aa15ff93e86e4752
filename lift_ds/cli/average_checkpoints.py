"""`tools/average_checkpoints.py`: the mean of several checkpoints as a Hugging Face folder."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from lift_ds.export.average import prepare_average

from .tool import run_tool
from .zero_to_hf import add_conversion_flags, read_options, write_conversion


def make_parser() -> argparse.ArgumentParser:
    """The flags."""
    parser = argparse.ArgumentParser(
        prog="average_checkpoints.py",
        description="Writes the mean of the weights of several ZeRO checkpoints of one model, each with the same "
        "weight, as a Hugging Face folder with the first one's config and tokenizer. Memory does not grow with the "
        "model.",
    )
    parser.add_argument("checkpoints", type=Path, nargs="+", help="runs, checkpoints or folders with ZeRO shards")
    parser.add_argument("output", type=Path, help="folder to create")
    add_conversion_flags(parser)
    return parser


def average(arguments: argparse.Namespace) -> None:
    """Checks, averages, writes.

    Raises:
        ValueError: The checkpoints cannot be averaged, or the folder exists.
        RuntimeError: The folder cannot be written.
    """
    write_conversion(prepare_average(arguments.checkpoints, read_options(arguments)), arguments)


def main(argv: list[str] | None = None) -> None:
    """Entry point; exits with 2 where the checkpoints cannot be averaged."""
    run_tool(partial(average, make_parser().parse_args(argv)))


if __name__ == "__main__":
    main()
