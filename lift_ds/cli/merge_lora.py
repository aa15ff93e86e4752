"""`tools/merge_lora.py`: a base model and LoRA adapters as one folder."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from lift_ds.export.folder import DTYPES
from lift_ds.export.merge import Merge, check_place, plan_merge, write_merged
from lift_ds.models.weights import resolve_folder


def make_parser() -> argparse.ArgumentParser:
    """The flags."""
    parser = argparse.ArgumentParser(
        prog="merge_lora.py",
        description="Merges LoRA adapters in PEFT's format into their base, tensor by tensor: memory does not grow "
        "with the model. Any base in safetensors whose matrices are (out, in), with its own files; bases of this "
        "package's families get the same files as an export. No GPU and no DeepSpeed is needed.",
    )
    parser.add_argument("base", help="base model: a folder, a hub name, or builtin:base")
    parser.add_argument("adapters", type=Path, help="folder with adapter_config.json and adapter_model.safetensors")
    parser.add_argument("output", type=Path, help="folder to create")
    parser.add_argument(
        "--dtype", choices=["auto", *DTYPES], default="auto", help="type of the weights; auto: as the base stores them"
    )
    parser.add_argument("--dry-run", action="store_true", help="check everything, write nothing")
    parser.add_argument("--json", type=Path, help="file for a summary")
    return parser


def run_merge(arguments: argparse.Namespace) -> dict[str, Any]:
    """Merges as the flags say; returns the summary."""
    dtype = DTYPES.get(arguments.dtype)
    began = time.perf_counter()
    merge = plan_merge(resolve_folder(arguments.base), arguments.adapters, dtype)
    if arguments.dry_run:
        check_place(merge, arguments.output)
    else:
        columns = (TextColumn("merging"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        with Progress(*columns, transient=True) as progress:
            task = progress.add_task("merging", total=merge.num_bytes)
            write_merged(merge, arguments.output, dtype, lambda count: progress.advance(task, count))
    return summary(merge, arguments) | {"seconds": round(time.perf_counter() - began, 3)}


def summary(merge: Merge, arguments: argparse.Namespace) -> dict[str, Any]:
    """What was merged, for `--json`."""
    return {
        "base": str(merge.base.folder),
        "adapters": str(arguments.adapters),
        "output": str(arguments.output),
        "dry_run": arguments.dry_run,
        "num_tensors": len(merge.specs),
        "num_merged": len(merge.adapters.targets),
        "num_bytes": merge.num_bytes,
        "ranks": sorted(set(merge.adapters.targets.values())),
        "copied": merge.copied,
        "left_out": merge.left_out,
    }


def main(argv: list[str] | None = None) -> None:
    """Entry point; exits with 2 where nothing can be merged."""
    arguments = make_parser().parse_args(argv)
    try:
        found = run_merge(arguments)
        if arguments.json:
            arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    except (ValueError, RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    done = "would merge" if arguments.dry_run else "merged"
    print(
        f"{done} {found['num_merged']} adapters (rank {', '.join(map(str, found['ranks']))}) into "
        f"{found['num_tensors']} tensors, {found['num_bytes'] / 1e9:.2f} GB: {arguments.output}"
    )
    if found["left_out"]:
        print(f"not copied from the base: {', '.join(found['left_out'])}")


if __name__ == "__main__":
    main()
