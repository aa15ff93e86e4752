"""Cuts a ZeRO checkpoint anew for another number of ranks, with the optimizer's state.

The result is what DeepSpeed would have saved there, so that any program that uses DeepSpeed resumes from it. (Runs of
this package resume on any number of ranks as they are.)
"""

from __future__ import annotations

import argparse
from pathlib import Path

from lift_ds.export.reshard import prepare_reshard, reshard

from .tool import flag, progress, show, tool


@tool(
    __doc__,
    flag("checkpoint", type=Path, help="a run, a checkpoint, or a folder with ZeRO shards"),
    flag("world_size", type=int, help="number of ranks to cut it for"),
    flag("output", type=Path, help="checkpoint to create"),
    flag("--dry-run", action="store_true", help="check everything and stop"),
    flag("--json", type=Path, metavar="FILE", help="write the summary there too"),
)
def main(arguments: argparse.Namespace) -> None:
    """Checks and cuts."""
    if arguments.dry_run:
        recutter, own = prepare_reshard(arguments.checkpoint, arguments.world_size)
        facts = {"checkpoint": str(own or recutter.zero.folder), "world_size": recutter.zero.world_size}
        facts["new_world_size"] = arguments.world_size
    else:
        with progress("writing", arguments.world_size) as advance:
            facts = reshard(arguments.checkpoint, arguments.world_size, arguments.output, advance)
    show(facts | {"output": str(arguments.output), "dry_run": arguments.dry_run}, arguments.json)
