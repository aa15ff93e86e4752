"""Says what a ZeRO checkpoint holds, this package's or another's.

Step, ranks, stage, tensors, data position; whether it is whole (checksums of every byte); norms, NaN and infinities of
its weights. With a second checkpoint it says which tensors differ and by how much. Exits with 1 where something is
broken or not finite.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from lift_ds.export.inspection import compare, describe, find_problems, named_tensors, open_inspected, scan, summarise

from .tool import flag, progress, show, tool

SHOWN_TENSORS = 10


@tool(
    __doc__,
    flag("checkpoint", type=Path, help="a run, a checkpoint, or a folder with ZeRO shards"),
    flag("other", type=Path, nargs="?", help="another one to compare with"),
    flag("--moments", action="store_true", help="look at the optimizer's moments too"),
    flag("--dry-run", action="store_true", help="read no tensors: only what stands beside them"),
    flag("--json", type=Path, metavar="FILE", help="write the facts there too"),
)
def main(arguments: argparse.Namespace) -> bool:
    """Prints facts; returns whether nothing is wrong."""
    zero, own = open_inspected(arguments.checkpoint)
    facts = describe(zero, own)
    is_good = True
    if not arguments.dry_run:
        problems = find_problems(zero, own)
        facts |= {"is_whole": not problems, "problems": "; ".join(problems)}
        tensors = named_tensors(zero, arguments.moments)
        with progress("scanning", sum(tensor.num_elements for tensor in tensors.values())) as advance:
            facts |= summarise(scan(tensors, advance))
        is_good = not problems and not facts["num_not_finite"]
    if arguments.other is not None:
        facts |= compare_with(arguments)
    show(facts, arguments.json)
    return is_good


def compare_with(arguments: argparse.Namespace) -> dict[str, Any]:
    """Facts of the comparison with the second checkpoint, with the tensors that differ most."""
    opened = [open_inspected(path) for path in (arguments.checkpoint, arguments.other)]
    first, second = (named_tensors(zero, arguments.moments) for zero, _ in opened)
    facts: dict[str, Any] = {"other": str(opened[1][1] or opened[1][0].folder), "other_step": opened[1][0].step}
    if arguments.dry_run:
        return facts
    with progress("comparing", sum(tensor.num_elements for tensor in first.values())) as advance:
        differences, changed = compare(first, second, advance)
    most = {f"differs {name}": value for name, value in list(changed.items())[:SHOWN_TENSORS]}
    return facts | differences | most
