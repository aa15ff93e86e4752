"""`tools/zero_to_hf.py`: a checkpoint as a Hugging Face folder."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lift_ds.models.export import DTYPES


def make_parser() -> argparse.ArgumentParser:
    """The flags."""
    parser = argparse.ArgumentParser(
        prog="zero_to_hf.py",
        description="Turns a checkpoint of a run into a Hugging Face folder: config, tokenizer, safetensors and one "
        "self-contained modelling file, so that transformers loads it with trust_remote_code=True without lift_ds.",
    )
    parser.add_argument("checkpoint", type=Path, help="RUN/checkpoints/step-NNNNNN, or RUN for its newest one")
    parser.add_argument("output", type=Path, help="folder to create")
    parser.add_argument(
        "--dtype", choices=["auto", *DTYPES], default="auto", help="type of the weights; auto: what the run computed in"
    )
    return parser


def newest_of(path: Path) -> Path:
    """The checkpoint itself, or the newest one of a run folder.

    Raises:
        ValueError: There is neither.
    """
    pointer = path / "checkpoints" / "latest"
    if pointer.is_file():
        return path / "checkpoints" / pointer.read_text(encoding="utf-8").strip()
    if not path.is_dir():
        raise ValueError(f"{path}: no such checkpoint or run folder.")
    return path


def main(argv: list[str] | None = None) -> None:
    """Entry point; exits with 2 where the checkpoint cannot be converted."""
    arguments = make_parser().parse_args(argv)
    from lift_ds.training.convert import convert_checkpoint  # deepspeed is slow to import

    try:
        checkpoint = newest_of(arguments.checkpoint)
        convert_checkpoint(checkpoint, arguments.output, arguments.dtype)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"{checkpoint} -> {arguments.output}")


if __name__ == "__main__":
    main()
