"""What command lines share: sizes, progress, summaries, what libraries may print, and how errors end them."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(KB|MB|GB|TB)", re.IGNORECASE)
INTERRUPTED = 128 + signal.SIGINT  # exit status after Ctrl-C, as shells have it
UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def parse_size(text: str) -> int:
    """Bytes of a size such as `200MB`; decimal units.

    Raises:
        ValueError: It is no size.
    """
    match = SIZE.fullmatch(text.strip())
    if match is None or float(match[1]) <= 0:
        raise ValueError(f"{text!r} is no size; write for example 200MB or 5GB.")
    return int(float(match[1]) * UNITS[match[2].upper()])


def check_writable(path: Path, flag: str) -> None:
    """Tries, before the work, whether a file can be written; one that exists is left as it is.

    Raises:
        ValueError: It cannot.
    """
    existed = path.exists()
    with writing(path, flag):
        path.open("ab").close()
    if not existed:
        path.unlink()


@contextmanager
def writing(path: Path, flag: str) -> Iterator[None]:
    """Names the flag where what it names cannot be written.

    Raises:
        ValueError: In place of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise ValueError(f"{flag} {path}: cannot be written: {error.strerror}; name a place that can.") from error


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], object]]:
    """A bar on the terminal; gives the function that advances it."""
    console = Console(stderr=True)
    columns = (TextColumn(what), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total)
        yield lambda amount: bar.advance(task, amount)


def show(facts: dict[str, Any], path: Path | None = None) -> None:
    """Prints facts as lines, and writes them as JSON where a path is given.

    Raises:
        OSError: It cannot be written.
    """
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:{width}}  {f'{value:,}' if isinstance(value, int) and abs(value) > 9999 else value}")
    if path is not None:
        path.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def run_tool(action: Callable[[], bool | None]) -> None:
    """Runs a tool; exits with 2 where it cannot do its work, 1 where it returns false, and 130 after Ctrl-C."""
    try:
        succeeded = action()
    except (ValueError, RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(INTERRUPTED)
    if succeeded is False:
        sys.exit(1)


def quieten(is_main: bool) -> None:
    """Keeps the libraries' chatter off the screen; errors and warnings of rank 0 stay."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", category=FutureWarning)
    if not is_main:  # what a data file is warned of, every rank would say
        warnings.simplefilter("ignore")
    for name in ("DeepSpeed", "transformers", "torch.distributed"):
        logging.getLogger(name).setLevel(logging.WARNING if is_main else logging.ERROR)
    logging.getLogger("DeepSpeed").addFilter(lambda record: "Setting accelerator to CPU" not in record.getMessage())
