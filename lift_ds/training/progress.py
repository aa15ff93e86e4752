"""What the person at the terminal sees while a run trains: a live panel, or plain lines where it is none."""

from __future__ import annotations

import math
import time
from collections import deque
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from lift_ds.storage.appending import append_line

from .bars import shares_bar, sparkline
from .timing import PARTS
from .watching import STATES_PER_SECOND, Watched

CURVE_WIDTH, BAR_WIDTH = 60, 74
SPEED_WINDOW = 20


class Progress:
    """Shows steps and messages; this one shows none, for ranks other than 0."""

    def say(self, message: str) -> None:
        """Prints one line."""

    def show_step(self, step: int, record: dict[str, Any]) -> None:
        """Shows a finished step (counted from 1) by its metrics."""

    def show_item(self, watched: Watched) -> None:
        """Shows a held-out item and how it was answered."""

    def close(self) -> None:
        """Ends the display."""


class PlainProgress(Progress):
    """One line a step, at most one every `every_seconds`; messages also go to `log`, with the time of day."""

    def __init__(self, console: Console, num_steps: int, every_seconds: float = 5.0, log: TextIO | None = None) -> None:
        self.console, self.num_steps, self.every_seconds, self.log = console, num_steps, every_seconds, log
        self.times: deque[tuple[int, float]] = deque(maxlen=SPEED_WINDOW)
        self.last = 0.0

    def say(self, message: str) -> None:
        """Prints and logs one line."""
        self._print(message)
        self._log(message)

    def _log(self, message: str) -> None:
        if self.log is not None:
            append_line(self.log, f"{time.strftime('%Y-%m-%d %H:%M:%S')} {message}")

    def _print(self, message: str) -> None:
        self.console.print(message, highlight=False, markup=False, soft_wrap=True)

    def show_step(self, step: int, record: dict[str, Any]) -> None:
        """Prints the step, unless the last line is too fresh."""
        eta = self._eta(step)
        if time.perf_counter() - self.last < self.every_seconds and step != self.num_steps:
            return
        self.last = time.perf_counter()
        shares = " ".join(f"{name} {share:.0%}" for name, share in record["component_share"].items())
        self._print(
            f"step {step}/{self.num_steps}  loss {record['loss']:.4f}  {shares}  grad {record['grad_norm']:.3f}  "
            f"lr {record['lr']:.2e}  {record['tokens_per_second']:,.0f} tok/s  {_use(record)}  "
            f"{_shares_of_time(record)}  ETA {eta}"
        )

    def show_item(self, watched: Watched) -> None:
        """Prints and logs the item in one line."""
        self.say(watched.line)

    def _eta(self, step: int) -> str:
        self.times.append((step, time.perf_counter()))
        (first_step, first), (last_step, last) = self.times[0], self.times[-1]
        seconds = (last - first) / max(last_step - first_step, 1) * (self.num_steps - step)
        minutes, rest = divmod(int(seconds), 60)
        return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


class LiveProgress(PlainProgress):
    """A panel that is redrawn in place: loss curve, component shares, levels, speed, and an item being un-masked."""

    def __init__(self, console: Console, num_steps: int, title: str, log: TextIO | None = None) -> None:
        super().__init__(console, num_steps, log=log)
        self.title = title
        self.losses: list[float] = []
        self.numbers: RenderableType = Text("before the first step")
        self.item: tuple[Watched, float] | None = None
        self.live = Live(
            console=console, get_renderable=self._panel, refresh_per_second=STATES_PER_SECOND, transient=False
        )
        self.live.start()

    def show_step(self, step: int, record: dict[str, Any]) -> None:
        """Redraws the numbers."""
        self.losses.append(record["loss"])
        self.numbers = self._numbers(step, record)

    def show_item(self, watched: Watched) -> None:
        """Logs the item, and plays how it was answered while training goes on."""
        self._log(watched.line)
        self.item = (watched, time.perf_counter())

    def _panel(self) -> Panel:
        parts, item = [self.numbers], self.item
        if item is not None:
            parts += [Rule(style="bright_black"), item[0].shown(time.perf_counter() - item[1])]
        return Panel(Group(*parts), title=self.title, width=80)

    def _numbers(self, step: int, record: dict[str, Any]) -> Group:
        numbers = Table.grid(padding=(0, 3))
        numbers.add_row("[bold]step", f"{step} / {self.num_steps}", "[bold]loss", f"{record['loss']:.4f}")
        numbers.add_row("[bold]ETA", self._eta(step), "[bold]tokens/s", f"{record['tokens_per_second']:,.0f}")
        numbers.add_row("[bold]lr", f"{record['lr']:.2e}", "[bold]grad norm", f"{record['grad_norm']:.3f}")
        levels = [float(count) for count in record["t_documents"]]
        rows = Table.grid(padding=(0, 2))
        rows.add_row("[bold]loss", Text(sparkline(self.losses, CURVE_WIDTH), "cyan"))
        rows.add_row("[bold]learning", shares_bar(record["component_share"]))
        rows.add_row("[bold]time", _shares_of_time(record))
        rows.add_row("[bold]devices", _use(record))
        if record["effective_num_learned"] is not None:
            rows.add_row("[bold]weights", _weights(record))
        rows.add_row("[bold]levels", Text.assemble("t 0 ", (sparkline(levels, 0), "magenta"), " 1"))
        done = round(step / self.num_steps * BAR_WIDTH)
        bar = Text.assemble(("━" * done, "green"), ("━" * (BAR_WIDTH - done), "bright_black"))
        return Group(bar, numbers, rows)

    def close(self) -> None:
        """Leaves the last panel on the screen, its item answered."""
        if self.item is not None:
            self.item = (self.item[0], -math.inf)
        self.live.stop()


def _use(record: dict[str, Any]) -> str:
    """Which share of the devices' rate a step reached, where it is known, and the most memory so far."""
    mfu = "" if record["mfu"] is None else f"MFU {record['mfu']:.0%}  "
    return f"{mfu}peak {record['peak_memory_gib']:.1f} GiB"


def _weights(record: dict[str, Any]) -> str:
    """How many tokens of equal weight those that were learned are worth, and what the heaviest one weighs."""
    return (
        f"{record['num_learned']:,} tokens, worth {record['effective_num_learned']:,.0f}; "
        f"the heaviest {record['largest_weight_share']:.1%}"
    )


def _shares_of_time(record: dict[str, Any]) -> str:
    """The parts of a step's seconds that make a hundredth of them or more."""
    seconds = {part: record[f"{part}_seconds"] for part in PARTS}
    total = sum(seconds.values())  # `seconds` are rank 0's; parts are means, and others may have waited for it before
    return " ".join(f"{part} {spent / total:.0%}" for part, spent in seconds.items() if spent >= 0.01 * total)


def make_progress(is_main: bool, num_steps: int, title: str, log_path: Path) -> Progress:
    """The display that fits: live in a terminal, plain elsewhere, none on other ranks; messages are logged."""
    if not is_main:
        return Progress()
    console, log = Console(), log_path.open("a", encoding="utf-8")
    if console.is_terminal:
        return LiveProgress(console, num_steps, title, log)
    return PlainProgress(console, num_steps, log=log)
