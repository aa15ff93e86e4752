"""Makes a masked diffusion model of a Llama, Qwen2 or Qwen3 checkpoint.

It has full attention, shifted prediction and one mask token more. The folder has a model_type of its own and is to be
fine-tuned with launchers/train.py --model OUTPUT; before that it predicts masked tokens poorly.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from lift_ds.export.folder import DTYPES

from .tool import run_tool, tool_parser


def make_parser() -> argparse.ArgumentParser:
    """The flags."""
    parser = tool_parser(__doc__)
    parser.add_argument("source", help="folder with safetensors or one GGUF file, a .gguf file, or a hub name")
    parser.add_argument("output", type=Path, help="folder to create")
    parser.add_argument("--mask-token", default="<|mask|>", help="its text, where the tokenizer has none")
    parser.add_argument(
        "--dtype", choices=["auto", *DTYPES], default="auto", help="type of the weights; auto: as stored, GGUF float32"
    )
    return parser


def adapt(arguments: argparse.Namespace) -> None:
    """Makes the model and says what was added to it.

    Raises:
        ValueError: The source cannot be adapted, or the folder exists.
        OSError: A file cannot be read or written.
    """
    from lift_ds.export.adapt import make_diffusion_model

    mask = make_diffusion_model(arguments.source, arguments.output, arguments.mask_token, arguments.dtype)
    origin = "new" if mask.is_new else "the tokenizer's own"
    print(f"mask token     {mask.text} (id {mask.token_id}, {origin}); its row is the mean of the others")
    print(f"embedding      {mask.rows_before} -> {mask.rows_after} rows")
    print(f"{arguments.source} -> {arguments.output}")


def main(argv: list[str] | None = None) -> None:
    """Entry point; exits with 2 where the source cannot be adapted."""
    run_tool(make_parser(), adapt, argv)


if __name__ == "__main__":
    main()
