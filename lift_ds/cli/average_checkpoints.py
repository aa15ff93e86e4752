"""Writes the mean of several ZeRO checkpoints of one model as a Hugging Face folder.

Each checkpoint has the same weight; config and tokenizer are the first one's. Memory does not grow with the model.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from lift_ds.export.convert import prepare_average

from .tool import flag, tool
from .zero_to_hf import CONVERSION_FLAGS, read_options, write_conversion


@tool(
    __doc__,
    flag("checkpoints", type=Path, nargs="+", help="runs, checkpoints or folders with ZeRO shards"),
    *CONVERSION_FLAGS,
)
def main(arguments: argparse.Namespace) -> None:
    """Checks, averages, writes."""
    write_conversion(prepare_average(arguments.checkpoints, read_options(arguments)), arguments)
