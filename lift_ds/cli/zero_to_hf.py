"""Turns a ZeRO checkpoint into a Hugging Face folder.

It gets config, tokenizer, safetensors, model card and, for the families of this package, one self-contained modelling
file, so that transformers loads it with trust_remote_code=True. Any ZeRO-1, 2 or 3 checkpoint of any number of ranks is
read, this package's or another's (Hugging Face's Trainer, Accelerate); memory does not grow with the model, and neither
DeepSpeed nor a GPU is needed. Nothing in a checkpoint is executed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from lift_ds.export.adapters import convert_adapters
from lift_ds.export.convert import Conversion, ConversionOptions, prepare_conversion
from lift_ds.export.folder import DTYPES
from lift_ds.export.verify import verify_export

from .tool import flag, parse_size, progress, show, tool

CONVERSION_FLAGS = (
    flag("output", type=Path, help="folder to create"),
    flag(
        "--dtype", choices=["auto", *DTYPES], default="auto", help="type of the weights; auto: what the run computed in"
    ),
    flag("--max-shard-size", default="5GB", metavar="SIZE", help="of a safetensors file (default 5GB)"),
    flag(
        "--config", type=Path, metavar="FOLDER", help="config and tokenizer of the model, for checkpoints without them"
    ),
    flag("--weights-only", action="store_true", help="write safetensors and nothing else"),
    flag(
        "--strip-prefix",
        metavar="PREFIX",
        help="take this off every name; module., base_model.model. and _orig_mod. are found without it",
    ),
    flag("--base-code", type=Path, metavar="FOLDER", help="copy this folder's .py files too"),
    flag("--base", type=Path, metavar="FOLDER", help="where the base of a run with adapters is now"),
    flag("--dry-run", action="store_true", help="check everything, say what would be written, stop"),
    flag(
        "--verify",
        action="store_true",
        help="read the folder again and compare every tensor, and for the families of this package the logits",
    ),
    flag("--json", type=Path, metavar="FILE", help="write the summary there too"),
)


def read_options(arguments: argparse.Namespace) -> ConversionOptions:
    """What `CONVERSION_FLAGS` ask for; a ValueError where a folder is not there, or a size is none."""
    for folder in (arguments.config, arguments.base_code, arguments.base):
        if folder is not None and not folder.is_dir():
            raise ValueError(f"{folder}: no such folder.")
    return ConversionOptions(
        arguments.dtype,
        parse_size(arguments.max_shard_size),
        arguments.config,
        arguments.weights_only,
        arguments.strip_prefix,
        arguments.base_code,
        arguments.base,
    )


def write_conversion(conversion: Conversion, arguments: argparse.Namespace) -> None:
    """Writes the folder, compares it where asked, and prints the summary.

    Raises:
        ValueError: The folder exists, or a shard is damaged.
        RuntimeError: The folder cannot be written, or is not what was to be written.
    """
    summary = conversion.summary()
    if not arguments.dry_run:
        with progress("writing", summary["num_parameters"]) as advance:
            conversion.write(arguments.output, advance)
        if arguments.verify:
            summary |= verify_export(conversion, arguments.output)
    show(summary | {"output": str(arguments.output), "dry_run": arguments.dry_run}, arguments.json)


@tool(
    __doc__,
    flag(
        "checkpoint",
        type=Path,
        help="RUN (its newest checkpoint), RUN/checkpoints/best, RUN/checkpoints/step-NNNNNN, checkpoint-N of a "
        "Trainer, or global_stepN",
    ),
    CONVERSION_FLAGS[0],
    flag(
        "--lora",
        choices=["merge", "split"],
        default="merge",
        help="a run with adapters: add them to its base, or write them alone, in PEFT's format",
    ),
    *CONVERSION_FLAGS[1:],
)
def main(arguments: argparse.Namespace) -> None:
    """Checks, converts, compares."""
    options = read_options(arguments)
    if arguments.lora == "merge":
        write_conversion(prepare_conversion(arguments.checkpoint, options), arguments)
        return
    if options != ConversionOptions() or arguments.verify or arguments.dry_run:
        raise ValueError("--lora split writes the adapters as they are; leave out the flags of whole models.")
    checkpoint = convert_adapters(arguments.checkpoint, arguments.output)
    show({"checkpoint": str(checkpoint), "output": str(arguments.output)}, arguments.json)
