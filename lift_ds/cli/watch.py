"""Shows how runs are doing, live in the terminal: of any run folder, while it trains and when it is over.

    python tools/watch.py runs/001
    python tools/watch.py runs/001 runs/002 --once > page.txt

Losses by component and level, held-out losses, solve rates, speed and where the time goes, memory, ranks, checkpoints,
events and faults. Several runs stand side by side. It only reads the folders, so that it runs on any machine that sees
them, in an ssh session too; Ctrl-C ends it, and the runs go on.
"""

from __future__ import annotations

import argparse
import gc
import time
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.segment import SegmentLines
from rich.text import Text

from lift_ds.storage.run_folder import RunFolder, read_on, read_run_folder

from .tool import flag, tool
from .watch_page import Look, page

FASTEST = 0.2


@tool(
    __doc__,
    flag("runs", nargs="+", metavar="RUN", type=Path, help="folder of a run, such as runs/001"),
    flag("--once", action="store_true", help="print one page and end; also where the output is no terminal"),
    flag("--every", type=float, default=2.0, metavar="SECONDS", help="time between looks (default: %(default)s)"),
)
def main(arguments: argparse.Namespace) -> None:
    """Watches the runs; a ValueError where a folder is none of a run."""
    if arguments.every < FASTEST:
        raise ValueError(f"--every={arguments.every:g}: at least {FASTEST} seconds.")
    runs = [read_run_folder(folder) for folder in dict.fromkeys(arguments.runs)]
    gc.freeze()  # a full collection would walk through the steps of days, and they stay
    console = Console()
    if console.is_terminal and not console.is_dumb_terminal and not arguments.once:
        runs = follow(runs, console, arguments.every)
    console.print(page(runs, Look.of(console), time.time()))


def follow(runs: list[RunFolder], console: Console, every: float) -> list[RunFolder]:
    """Redraws the page until Ctrl-C; returns the runs as they were last seen."""
    try:
        with Live(console=console, screen=True, auto_refresh=False, vertical_overflow="crop") as live:
            while True:
                live.update(cropped(page(runs, Look.of(console), time.time()), console), refresh=True)
                time.sleep(every)
                runs = [read_on(run) for run in runs]
    except KeyboardInterrupt:
        return runs


def cropped(whole: RenderableType, console: Console) -> RenderableType:
    """As much of a page as the terminal has lines for, and how much that leaves out."""
    lines = console.render_lines(whole, pad=False)
    if len(lines) <= console.height:
        return whole
    shown = console.height - 1
    note = Text(
        f"{len(lines) - shown} more lines: make the terminal higher or wider, or watch fewer runs", "bold yellow"
    )
    return Group(SegmentLines(lines[:shown], new_lines=True), note)
