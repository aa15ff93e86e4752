"""The page of `tools/watch.py`: what a run's folder says of it, in a panel for each run."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from lift_ds.section import flat
from lift_ds.storage.run_folder import FAILED, Event, Record, RunFolder
from lift_ds.training.bars import COMPONENT_COLORS, sparkline

WINDOW = 20  # newest steps that means are of
NARROWEST = 60  # columns of a panel
NUM_EVENTS, NUM_LOG, NUM_CHANGES = 6, 2, 8
LABEL_WIDTH = 10
QUIET_SECONDS, QUIET_STEPS = 120, 10  # without a line before that is marked
MEASURED_BY = (  # what held-out losses and solve rates depend on, besides what was learned
    *("data.path", "data.sources", "data.columns.", "data.system", "data.chat_template", "data.train_on"),
    *("data.max_length", "data.builtin_", "eval.path", "eval.rows", "eval.mixture", "eval.gen_length"),
    *("eval.block_length", "eval.steps", "eval.solve_", "seed", "model.path"),
)
OWN_KEYS = ("output", "data.clock")  # which every run has another value of
Row = tuple[str, RenderableType]


@dataclass(frozen=True)
class Look:
    """How a page is drawn: its width in columns, and whether letters beyond ASCII can be shown."""

    width: int
    is_plain: bool

    @classmethod
    def of(cls, console: Console) -> Look:
        """What a console can show."""
        return cls(console.width, not console.encoding.lower().startswith("utf"))

    def curve(self, values: list[float], width: int) -> str:
        """Values as bars, averaged down to a width."""
        drawn = sparkline(values, width) if values else ""
        return drawn.translate(PLAIN_BLOCKS) if self.is_plain else drawn


PLAIN_BLOCKS = str.maketrans("▁▂▃▄▅▆▇█", "_.,-=+*#")


def page(runs: list[RunFolder], look: Look, now: float) -> RenderableType:
    """All runs, as many side by side as have room, and what differs between them."""
    per_line = max(1, min(len(runs), look.width // NARROWEST))
    width = look.width // per_line
    lines: list[RenderableType] = []
    for first in range(0, len(runs), per_line):
        grid = Table.grid()
        for _ in range(per_line):
            grid.add_column(width=width, vertical="top")
        grid.add_row(*(run_panel(run, Look(width, look.is_plain), now) for run in runs[first : first + per_line]))
        lines.append(grid)
    return Group(*lines, *differences(runs))


def run_panel(run: RunFolder, look: Look, now: float) -> Panel:
    """One run."""
    table = Table.grid(padding=(0, 1))
    table.add_column(width=LABEL_WIDTH, style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    curve_width = look.width - LABEL_WIDTH - 22
    for label, shown in rows(run, look, curve_width, now):
        table.add_row(label, shown)
    return Panel(table, title=Text(str(run.folder)), width=look.width, title_align="left")


def rows(run: RunFolder, look: Look, width: int, now: float) -> Iterator[Row]:
    """The lines of a run's panel: a label, and what it says."""
    steps = run.of_kind("step")
    yield from course(run, steps, look, width, now)
    if steps:
        yield from losses(steps, look, width)
    yield from measurements(run, look, width)
    if steps:
        yield from speed(steps[-WINDOW:])
        yield from ranks(steps[-WINDOW:])
        yield from left_out(steps)
    if run.checkpoints:
        best = f", best {run.best}" if run.best else ""
        yield "saved", f"{run.latest or run.checkpoints[-1].name}{best}, {len(run.checkpoints)} kept"
    yield from happened(run)


def course(run: RunFolder, steps: list[Record], look: Look, width: int, now: float) -> Iterator[Row]:
    """What it is, how far it is, and whether it goes on."""
    model, method = run.run["model"]["path"], run.run["objective"]["method"]
    yield "run", f"{method}, {model}, {run.settings.get('world_size', '?')} ranks"
    wanted = run.run["optim"]["steps"]
    done = round(min(run.step / wanted, 1) * width)
    full, empty = ("#", ".") if look.is_plain else ("━", "━")
    bar = Text.assemble((full * done, "green"), (empty * (width - done), "bright_black"))
    yield "step", Text.assemble(bar, f" {run.step} / {wanted}")
    since = None if run.last_time is None else now - run.last_time
    if run.end is not None:
        ago = "" if since is None else f" {duration(since)} ago"
        yield "state", Text(f"{run.end}{ago}", "bold red" if run.end == FAILED else "green")
        return
    if since is None:
        yield "state", "before its first line"
        return
    each = statistics.median(record["seconds"] for record in steps[-WINDOW:]) if steps else 0.0
    is_quiet = since > max(QUIET_SECONDS, QUIET_STEPS * each)
    text = Text(f"last line {duration(since)} ago", "bold yellow" if is_quiet else "")
    if is_quiet:
        text.append("; it said of no end: it is busy with something long, stuck, or was killed")
    elif steps:
        text.append(f", ends in about {duration(seconds_left(steps, wanted))}")
    yield "state", text


def losses(steps: list[Record], look: Look, width: int) -> Iterator[Row]:
    """The training loss over the run, and that of its last steps by component and by level."""
    found = [record["loss"] for record in steps if record["loss"] is not None]
    if found:
        mean = statistics.fmean(found[-WINDOW:])
        yield "loss", Text.assemble((look.curve(found, width), "cyan"), f" {mean:.4f}")
    last = steps[-WINDOW:]
    shares = Text()
    for name, color in COMPONENT_COLORS.items():
        share = statistics.fmean(record["component_share"][name] for record in last)
        values = [each for record in last if (each := record.get("component_token_nll", {}).get(name)) is not None]
        value = f" {statistics.fmean(values):.3f}" if values else ""
        shares.append(f"{name} {share:.0%}{value}  ", color)
    yield "learned", shares
    fifths = [by_level(last, first, first + 2) for first in range(0, 10, 2)]
    shown = [f"{first / 10:g}: {value:.3f}" for first, value in zip(range(0, 10, 2), fifths, strict=True) if value]
    if shown:
        yield "by t from", "  ".join(shown)


def by_level(steps: list[Record], first: int, last: int) -> float | None:
    """The mean loss of a token in tenths `first` to before `last` of the levels, by documents."""
    pairs = [
        (record["t_documents"][tenth], record["t_token_nll"][tenth])
        for record in steps
        for tenth in range(first, last)
        if record["t_token_nll"][tenth] is not None
    ]
    total = sum(count for count, _ in pairs)
    return sum(count * value for count, value in pairs) / total if total else None


def measurements(run: RunFolder, look: Look, width: int) -> Iterator[Row]:
    """Held-out losses and solve rates: over the run, and the last ones by level and by task."""
    heldout = [record for record in run.of_kind("heldout") if record["mean"] is not None]
    if heldout:
        means = [record["mean"] for record in heldout]
        last, best = heldout[-1], min(heldout, key=lambda record: float(record["mean"]))
        at_best = "" if best is last else f", best {best['mean']:.4f} at {best['step']}"
        first = f"{means[0]:.4f} at {heldout[0]['step']}, " if len(means) == 2 else ""
        curve = look.curve(means, width) + " " if len(means) > 2 else first
        yield "held-out", Text.assemble((curve, "cyan"), f"{last['mean']:.4f} at step {last['step']}{at_best}")
        pairs = zip(last["levels"], last["by_level"], strict=True)
        yield "", "  ".join(f"t {level}: {value:.3f}" for level, value in pairs if value is not None)
    solved = run.of_kind("solve")
    if solved:
        rates = " -> ".join(f"{record['solve_rate']:.1%}" for record in (solved[0], solved[-1])[-len(solved) :])
        yield "solved", f"{rates} at step {solved[-1]['step']}"
        yield "", "  ".join(f"{task} {rate:.0%}" for task, rate in by_task(solved[-1]).items())


def by_task(record: Record) -> dict[str, float]:
    """The solve rate of each task, all levels together."""
    counts: dict[str, list[int]] = {}
    for name, score in record["scores"].items():
        count = counts.setdefault(name.partition("/")[0], [0, 0])
        count[0] += score["num_solved"]
        count[1] += score["num_items"]
    return {task: num_solved / max(num_items, 1) for task, (num_solved, num_items) in sorted(counts.items())}


def speed(last: list[Record]) -> Iterator[Row]:
    """Tokens, seconds and their parts, memory, all of the last steps."""
    seconds = statistics.fmean(record["seconds"] for record in last)
    tokens = sum(record["num_tokens"] for record in last) / sum(record["seconds"] for record in last)
    used = [record["mfu"] for record in last if record.get("mfu") is not None]
    use = f", MFU {statistics.fmean(used):.1%}" if used else ""
    yield "speed", f"{tokens:,.0f} tokens/s, {seconds:.3g} s a step{use}"
    if "slowest_seconds" in last[-1]:
        parts = {
            part: statistics.fmean(each[f"{part}_seconds"] for each in last) for part in last[-1]["slowest_seconds"]
        }
        total = sum(parts.values()) or 1.0
        shown = "  ".join(f"{part} {spent / total:.0%}" for part, spent in parts.items() if spent >= 0.01 * total)
        gathering = statistics.fmean(record.get("gather_seconds", 0.0) for record in last)
        yield "time", shown + (f"; gathers {gathering / total:.0%}" if gathering else "")
    if "peak_memory_gib" in last[-1]:
        reserved = last[-1]["peak_reserved_gib"]
        yield (
            "memory",
            f"peak {last[-1]['peak_memory_gib']:.2f} GiB" + (f", {reserved:.2f} reserved" if reserved else ""),
        )


def ranks(last: list[Record]) -> Iterator[Row]:
    """Which rank was slowest in the last steps, how often, and by how much."""
    known = [record["slowest_rank"] for record in last if "slowest_rank" in record]
    if not known or max(each["own_seconds"] for each in known) <= 0:
        return
    (rank, times), *_ = Counter(each["rank"] for each in known).most_common(1)
    behind = statistics.fmean(each["behind_seconds"] for each in known if each["rank"] == rank)
    share = behind / statistics.fmean(record["seconds"] for record in last)
    yield (
        "slowest",
        f"rank {rank} in {times} of {len(known)} steps, {behind:.3g} s behind the mean ({share:.0%} of a step)",
    )


def left_out(steps: list[Record]) -> Iterator[Row]:
    """Steps and rows that were left out."""
    num_bad = sum("bad_sample_ids" in record for record in steps)
    num_above = sum("norm_limit" in record for record in steps)
    num_long, num_wrong = (sum(record[key] for record in steps) for key in ("num_skipped", "num_bad_rows"))
    counts = {
        "steps not finite": num_bad,
        "steps above optim.skip_above": num_above,
        "rows too long": num_long,
        "bad rows": num_wrong,
    }
    shown = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    if shown:
        yield "left out", Text(shown, "yellow")


def happened(run: RunFolder) -> Iterator[Row]:
    """The last events, faults in red, and what else there is to say of the files."""
    events = run.events
    num_faults = sum(event.is_fault for event in events)
    if num_faults:
        yield "faults", Text(f"{num_faults}, the last: {line_of([e for e in events if e.is_fault][-1])}", "red")
    for place, event in enumerate(events[-NUM_EVENTS:]):
        yield ("events" if place == 0 else ""), Text(line_of(event), "red" if event.is_fault else "")
    for place, line in enumerate(run.log[-NUM_LOG:]):
        yield ("log" if place == 0 else ""), Text(line, "bright_black")
    if run.num_unreadable:
        yield "note", f"{run.num_unreadable} lines cannot be read, as a kill leaves them; they do not count"
    if run.half_lines:
        yield "note", f"the last line of {', '.join(run.half_lines)} is not whole; it does not count yet"


def line_of(event: Event) -> str:
    """An event in one line."""
    moment = time.strftime("%m-%d %H:%M:%S", time.localtime(event.time))
    return f"{moment} step {event.step}: {' '.join(event.text.split())}"


def differences(runs: list[RunFolder]) -> Iterator[Text]:
    """What several runs have otherwise, and whether what is measured of them compares."""
    settings = [flat(run.run) for run in runs]
    keys = dict.fromkeys(key for each in settings for key in each if key not in OWN_KEYS)
    differing = [key for key in keys if any(each.get(key) != settings[0].get(key) for each in settings[1:])]
    if not differing:
        return
    shown = [
        f"{key} {' | '.join(str(each.get(key, 'not set')) for each in settings)}" for key in differing[:NUM_CHANGES]
    ]
    more = f"; and {len(differing) - NUM_CHANGES} more" if len(differing) > NUM_CHANGES else ""
    yield Text(f"These runs differ in: {'; '.join(shown)}{more}")
    measured = [key for key in differing if key.startswith(MEASURED_BY)]
    if measured:
        yield Text(
            f"Held-out losses and solve rates may not compare: they depend on {', '.join(measured)}", "bold yellow"
        )


def seconds_left(steps: list[Record], wanted: int) -> float:
    """Seconds until the last step, by the clock of the newest ones, measurements between them included."""
    last = steps[-WINDOW:]
    num_taken = last[-1]["step"] - last[0]["step"]
    each: Any = (last[-1]["time"] - last[0]["time"]) / num_taken if num_taken > 0 else last[-1]["seconds"]
    return float(each * max(wanted - last[-1]["step"], 0))


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 90:
        return f"{max(seconds, 0):.0f} s"
    minutes = seconds / 60
    return (
        f"{minutes:.0f} min"
        if minutes < 90
        else f"{minutes / 60:.1f} h"
        if minutes < 2880
        else f"{minutes / 1440:.1f} days"
    )
