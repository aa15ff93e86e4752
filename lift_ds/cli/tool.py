"""What command lines share: flags, help, exits, sizes, progress, summaries, and what libraries may print."""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import signal
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from lift_ds.ranks.errors import is_explained
from lift_ds.text_files import check_locale

SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(KB|MB|GB|TB)", re.IGNORECASE)
INTERRUPTED = 128 + signal.SIGINT  # exit status after Ctrl-C, as shells have it
CODE_WARNING = warnings.formatwarning
UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
Flag = tuple[tuple[str, ...], dict[str, Any]]
Action = Callable[[argparse.Namespace], bool | None]


class Paragraphs(argparse.HelpFormatter):
    """Fills the paragraphs of a description; those with indented lines, examples and lists, stay as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = text.strip("\n").split("\n\n")
        return "\n\n".join(
            paragraph if "\n " in f"\n{paragraph}" else textwrap.fill(paragraph, width) for paragraph in paragraphs
        )


class OneValue(argparse.Action):
    """Stores a flag's value; where it has another one already, that is an error: argparse forgets the first."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option_string: Any = None
    ) -> None:
        """Stores it."""
        assert isinstance(parser, StrictParser)
        if self.option_strings and parser.given.setdefault(self.dest, values) != values:
            raise argparse.ArgumentError(self, f"given twice, {parser.given[self.dest]} and {values}; remove one")
        setattr(namespace, self.dest, values)


class StrictParser(argparse.ArgumentParser):
    """A parser whose flags take one value each, as keys do, but for those that may be given again."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.given: dict[str, Any] = {}
        self.register("action", None, OneValue)

    def parse_known_args(self, *arguments: Any, **settings: Any) -> Any:
        """Parses a command line."""
        self.given = {}
        return super().parse_known_args(*arguments, **settings)


def flag(*names: str, **settings: Any) -> Flag:
    """A flag, as `add_argument` takes it; one without dashes is an argument."""
    return names, settings


LOCAL_RANK = flag("--local_rank", "--local-rank", type=int, help="set by the launcher; ignored")


def tool_parser(
    description: str | None,
    flags: tuple[Flag, ...],
    kind: type[argparse.ArgumentParser] = argparse.ArgumentParser,
    epilog: str | None = None,
) -> argparse.ArgumentParser:
    """A parser, described by the tool's docstring; a `StrictParser` where flags stand beside keys of the run config."""
    parser = kind(description=description, epilog=epilog, formatter_class=Paragraphs)
    for names, settings in flags:
        parser.add_argument(*names, **settings)
    return parser


@dataclass(frozen=True)
class Tool:
    """A command line, which a call runs; see `tool_parser`. Its flags may stand between its arguments."""

    action: Action
    description: str | None
    flags: tuple[Flag, ...]
    kind: type[argparse.ArgumentParser]

    def parser(self) -> argparse.ArgumentParser:
        """Named as the process is by now."""
        return tool_parser(self.description, self.flags, self.kind)

    def __call__(self, argv: list[str] | None = None) -> None:
        """Runs it; exits with 2 where it cannot do its work, 1 where the action returns false, 130 after Ctrl-C."""
        arguments = self.parser().parse_intermixed_args(argv)
        warnings.formatwarning = warning_line
        try:
            check_locale()
            succeeded = self.action(arguments)
        except (ValueError, RuntimeError, OSError) as error:
            if not is_explained(error):
                raise
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
            sys.exit(INTERRUPTED)
        if succeeded is False:
            sys.exit(1)


def tool(
    description: str | None, *flags: Flag, kind: type[argparse.ArgumentParser] = argparse.ArgumentParser
) -> Callable[[Action], Tool]:
    """Makes a command line of a module's last function, see `tool_parser`; it runs where the module is the program."""

    def make(action: Action) -> Tool:
        made = Tool(action, description, flags, kind)
        if action.__module__ == "__main__":
            made()
        return made

    return make


def check_counts(arguments: argparse.Namespace, *names: str) -> None:
    """Refuses numbers below 1 with a ValueError; flags that are not given are left out."""
    for name in names:
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')}={value}: at least 1.")


def parse_size(text: str) -> int:
    """Bytes of a size such as `200MB`, in decimal units; a ValueError where it is none."""
    match = SIZE.fullmatch(text.strip())
    if match is None or float(match[1]) <= 0:
        raise ValueError(f"{text!r} is no size; write for example 200MB or 5GB.")
    return int(float(match[1]) * UNITS[match[2].upper()])


def check_writable(path: Path, flag: str) -> None:
    """Tries, before the work, whether a file can be written, as `writing` does; one that exists is left as it is."""
    existed = path.exists()
    with writing(path, flag):
        path.open("ab").close()
    if not existed:
        path.unlink()


@contextmanager
def writing(path: Path, flag: str) -> Iterator[None]:
    """Makes an OSError a ValueError that names the flag and its path."""
    try:
        yield
    except OSError as error:
        raise ValueError(f"{flag} {path}: cannot be written: {error.strerror}; name a place that can.") from error


@contextmanager
def progress(what: str, total: int, amount: ProgressColumn | None = None) -> Iterator[Callable[[int], None]]:
    """A bar on the terminal, with a percentage or another amount behind it; gives the function that advances it."""
    console = Console(stderr=True)
    columns = (TextColumn(what), BarColumn(), amount or TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total)
        yield lambda steps: bar.advance(task, steps)


def show(facts: dict[str, Any], path: Path | None = None) -> None:
    """Prints facts as lines, and writes them as JSON where a path is given."""
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:{width}}  {f'{value:,}' if isinstance(value, int) and abs(value) > 9999 else value}")
    if path is not None:
        write_json(path, facts)


def write_json(path: Path, facts: dict[str, Any]) -> None:
    """Writes facts for programs."""
    path.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def warning_line(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> str:
    """A warning as a person reads it: what the package says of files and settings, without the place in its code."""
    return f"warning: {message}\n" if category is UserWarning else CODE_WARNING(message, category, *place, **more)


def figures(title: str, texts: tuple[str, ...], numbers: tuple[str, ...]) -> Table:
    """A table without rows: columns of texts, then columns of numbers."""
    table = Table(title=title)
    for heading in (*texts, *numbers):
        table.add_column(heading, justify="left" if heading in texts else "right")
    return table


def percent_range(interval: Sequence[float] | None) -> str:
    """An interval of shares, where there is one."""
    return "" if interval is None else f"{interval[0]:.1%} to {interval[1]:.1%}"


def quieten(is_main: bool) -> None:
    """Keeps the libraries' chatter off the screen; errors and warnings of rank 0 stay."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.formatwarning = warning_line
    warnings.filterwarnings("ignore", category=FutureWarning)
    if not is_main:  # what a data file is warned of, every rank would say
        warnings.simplefilter("ignore")
    for name in ("DeepSpeed", "transformers", "torch.distributed"):
        logging.getLogger(name).setLevel(logging.WARNING if is_main else logging.ERROR)
    logging.getLogger("DeepSpeed").addFilter(lambda record: "Setting accelerator to CPU" not in record.getMessage())
