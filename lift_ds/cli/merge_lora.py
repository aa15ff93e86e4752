"""Merges LoRA adapters in PEFT's format into their base, tensor by tensor.

Memory does not grow with the model. Any base in safetensors whose matrices are (out, in), with its own files; bases of
this package's families get the same files as an export. No GPU and no DeepSpeed is needed.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from rich.progress import DownloadColumn

from lift_ds.export.folder import DTYPES
from lift_ds.export.merge import plan_merge, write_merged
from lift_ds.models.weights import resolve_folder
from lift_ds.storage.staging import check_place

from .tool import flag, progress, tool, write_json


@tool(
    __doc__,
    flag("base", help="base model: a folder, a hub name, or builtin:base"),
    flag("adapters", type=Path, help="folder with adapter_config.json and adapter_model.safetensors"),
    flag("output", type=Path, help="folder to create"),
    flag(
        "--dtype", choices=["auto", *DTYPES], default="auto", help="type of the weights; auto: as the base stores them"
    ),
    flag("--dry-run", action="store_true", help="check everything, write nothing"),
    flag("--json", type=Path, help="file for a summary"),
)
def main(arguments: argparse.Namespace) -> None:
    """Merges, prints what was merged, and writes it where asked."""
    dtype = DTYPES.get(arguments.dtype)
    began = time.perf_counter()
    plan = plan_merge(resolve_folder(arguments.base), arguments.adapters, dtype)
    if arguments.dry_run:
        check_place(arguments.output, plan.num_bytes)
    else:
        with progress("merging", plan.num_bytes, DownloadColumn()) as advance:
            write_merged(plan, arguments.output, dtype, advance)
    ranks = sorted(set(plan.adapters.targets.values()))
    if arguments.json:
        summary = {
            "base": str(plan.base.folder),
            "adapters": str(arguments.adapters),
            "output": str(arguments.output),
            "dry_run": arguments.dry_run,
            "num_tensors": len(plan.specs),
            "num_merged": len(plan.adapters.targets),
            "num_bytes": plan.num_bytes,
            "ranks": ranks,
            "copied": plan.copied,
            "left_out": plan.left_out,
            "seconds": round(time.perf_counter() - began, 3),
        }
        write_json(arguments.json, summary)
    print(
        f"{'would merge' if arguments.dry_run else 'merged'} {len(plan.adapters.targets)} adapters "
        f"(rank {', '.join(map(str, ranks))}) into {len(plan.specs)} tensors, {plan.num_bytes / 1e9:.2f} GB: "
        f"{arguments.output}"
    )
    if differ := plan.replaced_format():
        print(f"chat format of the adapters, not the base's: {'; '.join(differ)}")
    if plan.left_out:
        print(f"not copied from the base: {', '.join(plan.left_out)}")
