"""What the person at the terminal sees: a live panel, or plain lines where the output is no terminal."""

from __future__ import annotations

import itertools
import time
from collections import deque
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

BLOCKS = " ▁▂▃▄▅▆▇█"
CURVE_WIDTH = 60
SPEED_WINDOW = 20
COMPONENT_COLORS = {"easy": "green", "random": "yellow", "hard": "red"}


class Progress(Protocol):
    """Shows steps and messages."""

    def say(self, message: str) -> None:
        """Prints one line."""

    def show_step(self, step: int, record: dict[str, Any]) -> None:
        """Shows a finished step (counted from 1) by its metrics."""

    def close(self) -> None:
        """Ends the display."""


class Clock:
    """Steps per second over the last steps, and the time that remains."""

    def __init__(self, num_steps: int) -> None:
        """Starts with the first step that it is told of."""
        self.num_steps = num_steps
        self.times: deque[tuple[int, float]] = deque(maxlen=SPEED_WINDOW)

    def eta(self, step: int) -> str:
        """Time to the last step, as minutes and seconds."""
        self.times.append((step, time.perf_counter()))
        (first_step, first), (last_step, last) = self.times[0], self.times[-1]
        seconds = (last - first) / max(last_step - first_step, 1) * (self.num_steps - step)
        minutes, rest = divmod(int(seconds), 60)
        return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


class PlainProgress:
    """One line a step, at most one every `every_seconds`."""

    def __init__(self, console: Console, num_steps: int, every_seconds: float = 5.0) -> None:
        """Stores where to print."""
        self.console, self.num_steps, self.every_seconds = console, num_steps, every_seconds
        self.clock, self.last = Clock(num_steps), 0.0

    def say(self, message: str) -> None:
        """Prints one line."""
        self.console.print(message, highlight=False, markup=False, soft_wrap=True)

    def show_step(self, step: int, record: dict[str, Any]) -> None:
        """Prints the step, unless the last line is too fresh."""
        eta = self.clock.eta(step)
        if time.perf_counter() - self.last < self.every_seconds and step != self.num_steps:
            return
        self.last = time.perf_counter()
        shares = " ".join(f"{name} {share:.0%}" for name, share in record["component_share"].items())
        self.say(
            f"step {step}/{self.num_steps}  loss {record['loss']:.4f}  {shares}  grad {record['grad_norm']:.3f}  "
            f"lr {record['lr']:.2e}  {record['tokens_per_second']:,.0f} tok/s  scoring {scoring_share(record):.0%}  "
            f"ETA {eta}"
        )

    def close(self) -> None:
        """Nothing to end."""


class LiveProgress:
    """A panel that is redrawn in place: loss curve, component shares, levels, speed."""

    def __init__(self, console: Console, num_steps: int, title: str) -> None:
        """Starts the live display."""
        self.console, self.num_steps, self.title = console, num_steps, title
        self.clock = Clock(num_steps)
        self.losses: list[float] = []
        self.live = Live(console=console, refresh_per_second=4, transient=False)
        self.live.start()

    def say(self, message: str) -> None:
        """Prints above the panel."""
        self.live.console.print(message, highlight=False, markup=False)

    def show_step(self, step: int, record: dict[str, Any]) -> None:
        """Redraws the panel."""
        self.losses.append(record["loss"])
        self.live.update(self.panel(step, record, self.clock.eta(step)))

    def panel(self, step: int, record: dict[str, Any], eta: str) -> Panel:
        """The whole panel."""
        numbers = Table.grid(padding=(0, 3))
        numbers.add_row("[bold]step", f"{step} / {self.num_steps}", "[bold]loss", f"{record['loss']:.4f}")
        numbers.add_row("[bold]ETA", eta, "[bold]tokens/s", f"{record['tokens_per_second']:,.0f}")
        numbers.add_row("[bold]lr", f"{record['lr']:.2e}", "[bold]grad norm", f"{record['grad_norm']:.3f}")
        levels = [float(count) for count in record["t_documents"]]
        rows = Table.grid(padding=(0, 2))
        rows.add_row("[bold]loss", Text(sparkline(self.losses, CURVE_WIDTH), "cyan"))
        rows.add_row("[bold]learning", shares_bar(record["component_share"]))
        rows.add_row("[bold]scoring", f"{scoring_share(record):.0%} of the step's time")
        rows.add_row("[bold]levels", Text.assemble("t 0 ", (sparkline(levels, 0), "magenta"), " 1"))
        return Panel(Group(bar(step / self.num_steps, 74), numbers, rows), title=self.title, width=80)

    def close(self) -> None:
        """Leaves the last panel on the screen."""
        self.live.stop()


class NoProgress:
    """For ranks other than 0."""

    def say(self, message: str) -> None:
        """Prints nothing."""

    def show_step(self, step: int, record: dict[str, Any]) -> None:
        """Shows nothing."""

    def close(self) -> None:
        """Nothing to end."""


class LoggedProgress:
    """Another display, whose messages also go to `log.txt` with the time of day."""

    def __init__(self, shown: Progress, path: Path) -> None:
        """Opens the file for appending."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.shown, self.file = shown, path.open("a", encoding="utf-8")

    def say(self, message: str) -> None:
        """Prints and logs one line."""
        self.shown.say(message)
        self.file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {message}\n")
        self.file.flush()

    def show_step(self, step: int, record: dict[str, Any]) -> None:
        """Shows a step."""
        self.shown.show_step(step, record)

    def close(self) -> None:
        """Ends the display; the log stays open for last messages."""
        self.shown.close()


def scoring_share(record: dict[str, Any]) -> float:
    """What the passes without gradient take of a step's time."""
    return float(record["scoring_seconds"] / record["seconds"])


def sparkline(values: list[float], width: int) -> str:
    """Values as bars of eight heights; averaged down to `width` columns where it is positive."""
    if width and len(values) > width:
        edges = [len(values) * column // width for column in range(width + 1)]
        values = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    top, bottom = max(values), min(values)
    span = (top - bottom) or 1.0
    return "".join(BLOCKS[1 + int((value - bottom) / span * 7)] for value in values)


def bar(share: float, width: int) -> Text:
    """A line of which `share` is bright."""
    filled = round(share * width)
    return Text.assemble(("━" * filled, "green"), ("━" * (width - filled), "bright_black"))


def shares_bar(shares: dict[str, float], width: int = 30) -> Text:
    """Component shares as one coloured bar with its legend."""
    bar = Text()
    for name, share in shares.items():
        bar.append("█" * round(share * width), COMPONENT_COLORS[name])
    for name, share in shares.items():
        bar.append(f" {name} {share:.0%}", COMPONENT_COLORS[name])
    return bar


def make_progress(is_main: bool, num_steps: int, title: str, log_path: Path) -> Progress:
    """The display that fits: live in a terminal, plain elsewhere, none on other ranks; messages are logged."""
    if not is_main:
        return NoProgress()
    console = Console()
    is_live = console.is_terminal
    shown = LiveProgress(console, num_steps, title) if is_live else PlainProgress(console, num_steps)
    return LoggedProgress(shown, log_path)
