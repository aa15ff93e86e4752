"""Writes the mean of several ZeRO checkpoints of one model as a Hugging Face folder.

Each checkpoint has the same weight; config and tokenizer are the first one's. Memory does not grow with the model.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from lift_ds.export.convert import prepare_average

from .tool import run_tool, tool_parser
from .zero_to_hf import add_conversion_flags, read_options, write_conversion


def make_parser() -> argparse.ArgumentParser:
    """The flags."""
    parser = tool_parser(__doc__)
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
    run_tool(make_parser(), average, argv)


if __name__ == "__main__":
    main()
