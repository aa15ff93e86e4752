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

from .tool import parse_size, progress, run_tool, show, tool_parser


def make_parser() -> argparse.ArgumentParser:
    """The flags."""
    parser = tool_parser(__doc__)
    parser.add_argument(
        "checkpoint",
        type=Path,
        help="RUN (its newest checkpoint), RUN/checkpoints/best, RUN/checkpoints/step-NNNNNN, checkpoint-N of a "
        "Trainer, or global_stepN",
    )
    parser.add_argument("output", type=Path, help="folder to create")
    parser.add_argument(
        "--lora",
        choices=["merge", "split"],
        default="merge",
        help="a run with adapters: add them to its base, or write them alone, in PEFT's format",
    )
    add_conversion_flags(parser)
    return parser


def add_conversion_flags(parser: argparse.ArgumentParser) -> None:
    """How a folder is written."""
    parser.add_argument(
        "--dtype", choices=["auto", *DTYPES], default="auto", help="type of the weights; auto: what the run computed in"
    )
    parser.add_argument("--max-shard-size", default="5GB", metavar="SIZE", help="of a safetensors file (default 5GB)")
    parser.add_argument(
        "--config", type=Path, metavar="FOLDER", help="config and tokenizer of the model, for checkpoints without them"
    )
    parser.add_argument("--weights-only", action="store_true", help="write safetensors and nothing else")
    parser.add_argument(
        "--strip-prefix",
        metavar="PREFIX",
        help="take this off every name; module., base_model.model. and _orig_mod. are found without it",
    )
    parser.add_argument("--base-code", type=Path, metavar="FOLDER", help="copy this folder's .py files too")
    parser.add_argument("--base", type=Path, metavar="FOLDER", help="where the base of a run with adapters is now")
    parser.add_argument("--dry-run", action="store_true", help="check everything, say what would be written, stop")
    parser.add_argument(
        "--verify",
        action="store_true",
        help="read the folder again and compare every tensor, and for the families of this package the logits",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the summary there too")


def read_options(arguments: argparse.Namespace) -> ConversionOptions:
    """The flags of `add_conversion_flags`.

    Raises:
        ValueError: A folder is not there, or a size is none.
    """
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


def convert(arguments: argparse.Namespace) -> None:
    """Checks, converts, compares.

    Raises:
        ValueError: The checkpoint cannot be converted, or the folder exists.
        RuntimeError: The folder cannot be written, or is not what was to be written.
    """
    options = read_options(arguments)
    if arguments.lora == "merge":
        write_conversion(prepare_conversion(arguments.checkpoint, options), arguments)
        return
    if options != ConversionOptions() or arguments.verify or arguments.dry_run:
        raise ValueError("--lora split writes the adapters as they are; leave out the flags of whole models.")
    checkpoint = convert_adapters(arguments.checkpoint, arguments.output)
    show({"checkpoint": str(checkpoint), "output": str(arguments.output)}, arguments.json)


def main(argv: list[str] | None = None) -> None:
    """Entry point; exits with 2 where the checkpoint cannot be converted."""
    run_tool(make_parser(), convert, argv)


if __name__ == "__main__":
    main()
