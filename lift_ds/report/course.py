"""How runs went: speed and where the time went, memory, events and faults, and the settings in which they differ."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lift_ds.config.resuming import MISSING, shown
from lift_ds.training.timing import PARTS

from .curves import compared
from .parts import Part, Table, Texts, number
from .plots import FROM_ZERO, Style, plot_parts
from .runs import ReportedRun, moment
from .series import mean_of

MOST_EVENTS = 60  # of each run that are shown, besides its faults
MOST_FAULTS = 200
LAST_LINES = 40
WHERE = ("output", "checkpoint.resume", "data.clock")  # differ in every run, and change nothing


def speed_part(runs: Sequence[ReportedRun]) -> Part:
    """Tokens a second, the share of the devices' rate, and where a step's seconds go."""
    part = Part("Speed and time")
    compared(part, runs, "Tokens a second", lambda run: run.column("tokens_per_second"), style=FROM_ZERO)
    compared(
        part, runs, "Seconds of a step", lambda run: run.column("seconds"), style=Style(has_band=True, from_zero=True)
    )
    unknown = "the rate of its devices is not known; model.peak_tflops sets it"
    compared(
        part,
        runs,
        "MFU",
        lambda run: run.column("mfu"),
        "Share of the devices' rate that was used.",
        unknown,
        style=FROM_ZERO,
    )
    caption = "Most tokens of a rank over the ranks' mean: what is above 1 is waited for."
    compared(part, runs, "Imbalance of tokens", lambda run: run.column("tokens_imbalance"), caption)
    caption = "Seconds in which the slowest rank waited for no other, beyond the ranks' mean."
    compared(
        part,
        runs,
        "Seconds behind the mean",
        lambda run: run.column("slowest_rank", "behind_seconds"),
        caption,
        "its version did not measure it",
        style=FROM_ZERO,
    )
    timed = [run for run in runs if np.isfinite(run.column("forward_seconds")).any()]
    part.lack("time by part", [run.label for run in runs if run not in timed], len(runs), "its version measured none")
    if timed:
        means = {name: np.array([mean_of(run.column(f"{name}_seconds")) for run in timed]) for name in PARTS}
        labels = [run.label for run in timed]
        caption = "Mean over steps and ranks. Scoring is the pass that ranks tokens; it is not in forward."
        part.figures.append(plot_parts("Seconds of a step, by part", labels, means, "seconds", caption))
        rows = []
        for index, run in enumerate(timed):
            total = sum(values[index] for values in means.values()) or 1.0
            for name, values in means.items():
                slowest = mean_of(run.column("slowest_seconds", name))
                rows.append([run.label, name, number(values[index]), f"{values[index] / total:.1%}", number(slowest)])
        headings = ("run", "part", "mean seconds", "share", "slowest rank")
        part.tables.append(Table(headings, rows, "Time by part, in figures", 2, is_folded=True))
    return part


def memory_part(runs: Sequence[ReportedRun]) -> Part:
    """Most memory so far, and what the warm-up took."""
    part = Part("Memory", ["Of the rank with most, in GiB: allocated on its device; on CPUs resident."])
    compared(part, runs, "Peak memory", lambda run: run.column("peak_memory_gib"), style=FROM_ZERO)
    reserved = "none on CPUs"
    compared(part, runs, "Peak reserved", lambda run: run.column("peak_reserved_gib"), "", reserved, style=FROM_ZERO)
    rows = []
    for run in runs:
        for record in run.folder.of_kind("warm_up"):
            facts = {key: value for key, value in record.items() if key not in ("kind", "step", "time")}
            rows += [[run.label, name, shown(value)] for name, value in facts.items()]
    if rows:
        part.tables.append(
            Table(("run", "warm-up", "value"), rows, "The largest micro-batch, run before", 2, is_folded=True)
        )
    without = [run.label for run in runs if not run.folder.of_kind("warm_up")]
    part.lack("warm-up", without, len(runs), "model.warm_up was off, or no step was left")
    return part


def events_part(runs: Sequence[ReportedRun]) -> Part:
    """What happened, faults first of all, and the last lines of the logs."""
    part = Part("Events and faults")
    events = []
    for run in runs:
        found = run.folder.events
        faults = [event for event in found if event.is_fault]
        others = [event for event in found if not event.is_fault]
        for name, listed, most in (("faults", faults, MOST_FAULTS), ("other events", others, MOST_EVENTS)):
            if len(listed) > most:
                part.lines.append(f"{run.label}: the last {most} of {len(listed):,} {name} are shown.")
            events += [(event.time, run.label, event) for event in listed[-most:]]
    events.sort(key=lambda entry: entry[0])
    rows = [[moment(time), label, str(event.step), event.text] for time, label, event in events]
    if rows:
        marks = ["fault" if event.is_fault else "" for _, _, event in events]
        part.tables.append(Table(("time", "run", "step", "event"), rows, num_texts=4, marks=marks))
    quiet = [run.label for run in runs if not any(event.is_fault for event in run.folder.events)]
    if quiet:
        part.lines.append(f"Without faults: {', '.join(quiet)}.")
    for run in runs:
        summaries = [line for line in run.folder.supervised if line.get("event") == "summary"]
        for line in summaries[-1:]:
            goodput = number(line.get("goodput"), ".1%")
            part.lines.append(
                f"{run.label}, supervised: {line.get('reason')}; {line.get('starts')} starts, goodput {goodput}."
            )
    skipped = [
        (run, int(np.nansum(run.column("num_skipped"))), int(np.nansum(run.column("num_bad_rows")))) for run in runs
    ]
    part.lines += [
        f"{run.label}: {num_skipped:,} rows skipped, {num_bad:,} bad rows."
        for run, num_skipped, num_bad in skipped
        if num_skipped or num_bad
    ]
    for run in runs:
        if run.folder.log:
            lines = run.folder.log[-LAST_LINES:]
            title = f"{run.label}: the last {len(lines)} of {len(run.folder.log):,} lines of log.txt"
            part.texts.append(Texts(title, lines))
    part.lack("lines in log.txt", [run.label for run in runs if not run.folder.log], len(runs))
    return part


def settings_part(runs: Sequence[ReportedRun]) -> Part:
    """The settings in which runs differ, and all of each."""
    part = Part("Settings")
    keys = list(dict.fromkeys(key for run in runs for key in run.settings))
    labels = [run.label for run in runs]

    def values(key: str) -> list[str]:
        return [shown(run.settings[key]) if key in run.settings else MISSING for run in runs]

    if len(runs) > 1:
        differing = [[key, *values(key)] for key in keys if key not in WHERE and len(set(values(key))) > 1]
        if differing:
            part.tables.append(Table(("setting", *labels), differing, "What differs", 1 + len(runs)))
        else:
            part.lines.append("They differ in no setting.")
    everything = [[key, *values(key)] for key in keys]
    part.tables.append(Table(("setting", *labels), everything, "All settings", 1 + len(runs), is_folded=True))
    return part
