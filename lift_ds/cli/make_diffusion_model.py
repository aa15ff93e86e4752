"""Makes a masked diffusion model of a Llama, Qwen2 or Qwen3 checkpoint.

It has full attention, shifted prediction and one mask token more; with --block a Qwen3 becomes an SDAR, which denoises
block after block. The folder has a model_type of its own and is to be fine-tuned with launchers/train.py --model
OUTPUT; before that it predicts masked tokens poorly.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from lift_ds.export.folder import DTYPES

from .tool import check_counts, flag, tool


@tool(
    __doc__,
    flag("source", help="folder with safetensors or one GGUF file, a .gguf file, or a hub name"),
    flag("output", type=Path, help="folder to create"),
    flag("--block", type=int, help="tokens of a block, for a model that denoises block after block (SDAR); Qwen3 only"),
    flag("--mask-token", default="<|mask|>", help="its text, where the tokenizer has none"),
    flag(
        "--dtype", choices=["auto", *DTYPES], default="auto", help="type of the weights; auto: as stored, GGUF float32"
    ),
)
def main(arguments: argparse.Namespace) -> None:
    """Makes the model and says what was added to it."""
    from lift_ds.export.adapt import make_diffusion_model

    check_counts(arguments, "block")
    mask = make_diffusion_model(
        arguments.source, arguments.output, arguments.mask_token, arguments.dtype, arguments.block
    )
    origin = "new" if mask.is_new else "the tokenizer's own"
    print(f"mask token     {mask.text} (id {mask.token_id}, {origin}); its row is the mean of the others")
    print(f"embedding      {mask.rows_before} -> {mask.rows_after} rows")
    if arguments.block is not None:
        print(f"blocks         {arguments.block} tokens; the output at i is to predict token i")
    print(f"{arguments.source} -> {arguments.output}")
