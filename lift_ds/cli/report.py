"""Writes what runs left as one HTML page, and compares them.

    python tools/report.py runs/001
    python tools/report.py runs/001 runs/002 --output lift_against_vanilla.html

Losses by level and component, held-out losses, what was solved before and after, learnability maps, the hardest rows,
speed, time, memory, events, faults, and the settings in which the runs differ. The page holds all that it shows and
opens without a network. Only files of the runs' folders are read, also of runs that still train, and of the evaluations
that are named; what a run does not have is said.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Sequence
from pathlib import Path

from lift_ds.storage.run_folder import RunFolder, read_run_folder

from .tool import check_writable, flag, tool


def open_folders(paths: Sequence[Path]) -> list[RunFolder]:
    """Reads the folders of runs.

    Raises:
        NewerFormatError: A later version wrote one.
        ValueError: A folder is no run's, cannot be read, or is named twice.
    """
    for number, path in enumerate(paths):
        if path.resolve() in [other.resolve() for other in paths[:number]]:
            raise ValueError(f"{path}: named twice; name each run once.")
    return [read_run_folder(path) for path in paths]


@tool(
    __doc__,
    flag("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run; more than one are compared"),
    flag(
        "--output",
        type=Path,
        help="HTML file; default: RUN/report.html, of several runs ./report.html. A report that is there is replaced",
    ),
    flag("--title", help="of the page"),
    flag(
        "--evaluation",
        type=Path,
        action="append",
        default=[],
        metavar="FOLDER",
        help="results of tools/evaluate.py that are not in a run's folder; may be given again",
    ),
)
def main(arguments: argparse.Namespace) -> None:
    """Writes the report."""
    gc.disable()  # it would walk through all lines of long runs again and again; nothing here goes in circles
    try:
        folders = open_folders(arguments.runs)
        from lift_ds.report.page import check_output, write_report

        output = arguments.output or (arguments.runs[0] if len(folders) == 1 else Path()) / "report.html"
        check_output(output)
        check_writable(output, "--output")
        write_report(folders, output, arguments.evaluation, arguments.title)
    except ImportError as error:
        raise ValueError(f"{error}; the report needs matplotlib: pip install 'lift_ds[report]'") from error
    finally:
        gc.enable()
    print(f"{output}: {output.stat().st_size / 1e6:.1f} MB")
