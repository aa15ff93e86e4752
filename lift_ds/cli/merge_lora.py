"""Merges LoRA adapters in PEFT's format into their base, tensor by tensor.

Memory does not grow with the model. Any base in safetensors whose matrices are (out, in), with its own files; bases of
this package's families get the same files as an export. No GPU and no DeepSpeed is needed.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from rich.progress import DownloadColumn

from lift_ds.export.folder import DTYPES
from lift_ds.export.merge import Merge, plan_merge, write_merged
from lift_ds.models.weights import resolve_folder
from lift_ds.storage.staging import check_place

from .tool import progress, run_tool, tool_parser, write_json


def make_parser() -> argparse.ArgumentParser:
    """The flags."""
    parser = tool_parser(__doc__)
    parser.add_argument("base", help="base model: a folder, a hub name, or builtin:base")
    parser.add_argument("adapters", type=Path, help="folder with adapter_config.json and adapter_model.safetensors")
    parser.add_argument("output", type=Path, help="folder to create")
    parser.add_argument(
        "--dtype", choices=["auto", *DTYPES], default="auto", help="type of the weights; auto: as the base stores them"
    )
    parser.add_argument("--dry-run", action="store_true", help="check everything, write nothing")
    parser.add_argument("--json", type=Path, help="file for a summary")
    return parser


def merge(arguments: argparse.Namespace) -> None:
    """Merges, prints what was merged, and writes it where asked.

    Raises:
        ValueError: The adapters do not fit the base, or the folder exists.
        RuntimeError: The folder cannot be written.
        OSError: The summary cannot be written.
    """
    dtype = DTYPES.get(arguments.dtype)
    began = time.perf_counter()
    plan = plan_merge(resolve_folder(arguments.base), arguments.adapters, dtype)
    if arguments.dry_run:
        check_place(arguments.output, plan.num_bytes)
    else:
        with progress("merging", plan.num_bytes, DownloadColumn()) as advance:
            write_merged(plan, arguments.output, dtype, advance)
    if arguments.json:
        write_json(arguments.json, summarise(plan, arguments) | {"seconds": round(time.perf_counter() - began, 3)})
    ranks = ", ".join(map(str, sorted(set(plan.adapters.targets.values()))))
    print(
        f"{'would merge' if arguments.dry_run else 'merged'} {len(plan.adapters.targets)} adapters (rank {ranks}) into "
        f"{len(plan.specs)} tensors, {plan.num_bytes / 1e9:.2f} GB: {arguments.output}"
    )
    if differ := plan.replaced_format():
        print(f"chat format of the adapters, not the base's: {'; '.join(differ)}")
    if plan.left_out:
        print(f"not copied from the base: {', '.join(plan.left_out)}")


def summarise(plan: Merge, arguments: argparse.Namespace) -> dict[str, Any]:
    """What was merged, for `--json`."""
    return {
        "base": str(plan.base.folder),
        "adapters": str(arguments.adapters),
        "output": str(arguments.output),
        "dry_run": arguments.dry_run,
        "num_tensors": len(plan.specs),
        "num_merged": len(plan.adapters.targets),
        "num_bytes": plan.num_bytes,
        "ranks": sorted(set(plan.adapters.targets.values())),
        "copied": plan.copied,
        "left_out": plan.left_out,
    }


def main(argv: list[str] | None = None) -> None:
    """Entry point; exits with 2 where nothing can be merged."""
    run_tool(make_parser(), merge, argv)


if __name__ == "__main__":
    main()
