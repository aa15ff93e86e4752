"""`tools/make_diffusion_model.py`: an autoregressive model as a masked diffusion model."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lift_ds.export.folder import DTYPES


def make_parser() -> argparse.ArgumentParser:
    """The flags."""
    parser = argparse.ArgumentParser(
        prog="make_diffusion_model.py",
        description="Makes a masked diffusion model of a Llama, Qwen2 or Qwen3 checkpoint: full attention, shifted "
        "prediction, one mask token more. The folder has a model_type of its own and is to be fine-tuned with "
        "launchers/train.py --model OUTPUT; before that it predicts masked tokens poorly.",
    )
    parser.add_argument("source", help="folder with safetensors or one GGUF file, a .gguf file, or a hub name")
    parser.add_argument("output", type=Path, help="folder to create")
    parser.add_argument("--mask-token", default="<|mask|>", help="its text, where the tokenizer has none")
    parser.add_argument(
        "--dtype", choices=["auto", *DTYPES], default="auto", help="type of the weights; auto: as stored, GGUF float32"
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    """Entry point; exits with 2 where the source cannot be adapted."""
    arguments = make_parser().parse_args(argv)
    from lift_ds.export.adapt import make_diffusion_model

    try:
        mask = make_diffusion_model(arguments.source, arguments.output, arguments.mask_token, arguments.dtype)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    origin = "new" if mask.is_new else "the tokenizer's own"
    print(f"mask token     {mask.text} (id {mask.token_id}, {origin}); its row is the mean of the others")
    print(f"embedding      {mask.rows_before} -> {mask.rows_after} rows")
    print(f"{arguments.source} -> {arguments.output}")


if __name__ == "__main__":
    main()
