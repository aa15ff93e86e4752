"""Cuts a ZeRO checkpoint anew for another number of ranks, with the optimizer's state.

The result is what DeepSpeed would have saved there, so that any program that uses DeepSpeed resumes from it. (Runs of
this package resume on any number of ranks as they are.)
"""

from __future__ import annotations

import argparse
from pathlib import Path

from lift_ds.export.reshard import prepare_reshard, reshard

from .tool import progress, run_tool, show, tool_parser


def make_parser() -> argparse.ArgumentParser:
    """The flags."""
    parser = tool_parser(__doc__)
    parser.add_argument("checkpoint", type=Path, help="a run, a checkpoint, or a folder with ZeRO shards")
    parser.add_argument("world_size", type=int, help="number of ranks to cut it for")
    parser.add_argument("output", type=Path, help="checkpoint to create")
    parser.add_argument("--dry-run", action="store_true", help="check everything and stop")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the summary there too")
    return parser


def recut(arguments: argparse.Namespace) -> None:
    """Checks and cuts.

    Raises:
        ValueError: The checkpoint is not whole, or the output exists.
        RuntimeError: The output cannot be written.
    """
    if arguments.dry_run:
        recutter, own = prepare_reshard(arguments.checkpoint, arguments.world_size)
        facts = {"checkpoint": str(own or recutter.zero.folder), "world_size": recutter.zero.world_size}
        facts["new_world_size"] = arguments.world_size
    else:
        with progress("writing", arguments.world_size) as advance:
            facts = reshard(arguments.checkpoint, arguments.world_size, arguments.output, advance)
    show(facts | {"output": str(arguments.output), "dry_run": arguments.dry_run}, arguments.json)


def main(argv: list[str] | None = None) -> None:
    """Entry point; exits with 2 where the checkpoint cannot be cut."""
    run_tool(make_parser(), recut, argv)


if __name__ == "__main__":
    main()
