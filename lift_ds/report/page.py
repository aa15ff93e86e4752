"""A report as one HTML page, from the folders of runs."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lift_ds.evaluation.page_frame import GENERATOR, render
from lift_ds.storage.run_folder import RunFolder

from .course import events_part, memory_part, settings_part, speed_part
from .curves import heldout_part, training_part
from .maps import hardest_part, learnability_part
from .parts import Part, number
from .plots import Key
from .runs import ReportedRun, ago, moment, told_apart
from .solving import evaluations_part, solving_part

HEAD_BYTES = 4096


@dataclass(frozen=True)
class Card:
    """A run at a glance."""

    key: Key
    about: str
    facts: list[tuple[str, str]]
    state: str
    folder: str


def card_of(run: ReportedRun, now: float) -> Card:
    """What there is to know first."""
    folder = run.folder
    facts = [("steps", f"{folder.step:,} of {number(run.num_steps, ',')}")]
    losses = [f"{record['mean']:.3f}" for record in (*run.heldout[:1], *run.heldout[1:][-1:])]
    if losses:
        facts.append(("held-out loss", " → ".join(losses)))
    solved = {record.get("moment"): record.get("solve_rate") for record in folder.of_kind("solve")}
    if solved.keys() & {"before", "after"}:
        facts.append(("solved", " → ".join(number(solved.get(side), ".1%") for side in ("before", "after"))))
    seconds = float(np.nansum(run.column("seconds")))
    if seconds:
        facts.append(("tokens a second", f"{np.nansum(run.column('num_tokens')) / seconds:,.0f}"))
        facts.append(("time in recorded steps", ago(seconds)))
    peaks = run.column("peak_memory_gib")
    if np.isfinite(peaks).any():
        facts.append(("peak memory", f"{np.nanmax(peaks):.2f} GiB"))
    ranks = folder.settings.get("world_size")
    facts.append(("ranks", number(ranks)))
    model = folder.run.get("model", {}).get("path", "?")
    about = f"{run.method} on {run.task}, from {model}"
    return Card(run.key, about, facts, run.state(now), str(folder.folder))


def notices_of(run: ReportedRun) -> list[str]:
    """What the reader must know of a folder that is not as it should be."""
    folder, lines = run.folder, []
    if folder.half_lines:
        lines.append(
            f"{run.label}: the last line of {', '.join(folder.half_lines)} has no end: it is being written, or was cut "
            "short. It is not counted."
        )
    if folder.num_unreadable:
        lines.append(
            f"{run.label}: whole lines of its files that cannot be read and are not counted: {folder.num_unreadable}."
        )
    if not run.records:
        lines.append(f"{run.label}: no step is recorded.")
    return lines


def report_page(runs: Sequence[ReportedRun], evaluations: Sequence[Path], title: str, now: float) -> str:
    """The page; `now` is when it is written, in seconds since 1970."""
    notices = [line for run in runs for line in notices_of(run)]
    tasks = list(dict.fromkeys(run.task for run in runs))
    if len(tasks) > 1:
        notices.append(f"These runs learned different data: {'; '.join(tasks)}. Dashes tell them apart.")
    parts = [
        solving_part(runs),
        evaluations_part(runs, evaluations),
        heldout_part(runs),
        training_part(runs),
        learnability_part(runs),
        hardest_part(runs),
        speed_part(runs),
        memory_part(runs),
        events_part(runs),
        settings_part(runs),
    ]
    empty = [part for part in parts if part.is_empty]
    parts = [part for part in parts if not part.is_empty]
    if empty:
        parts.append(
            Part(
                "Not in these runs" if len(runs) > 1 else "Not in this run",
                missing=[line for part in empty for line in part.missing],
            )
        )
    cards = [card_of(run, now) for run in runs]
    return render("report.html", title, written=moment(now), notices=notices, cards=cards, parts=parts)


def write_report(
    folders: Sequence[RunFolder], output: Path, evaluations: Sequence[Path] = (), title: str | None = None
) -> None:
    """Writes the page of some runs, whole or not at all; see `check_output` for what it may replace."""
    runs = told_apart(folders)
    named = f"Run {runs[0].label}" if len(runs) == 1 else f"{len(runs)} runs: {', '.join(run.label for run in runs)}"
    page = report_page(runs, evaluations, title or named, time.time())
    part = output.with_name(f".{output.name}.part")
    part.write_text(page, encoding="utf-8", errors="replace")
    os.replace(part, output)


def check_output(output: Path) -> None:
    """Refuses to replace what is no page of ours.

    Raises:
        ValueError: There is a folder, or another file.
    """
    if output.is_dir():
        raise ValueError(f"--output {output}: a folder; name a file, such as {output / 'report.html'}.")
    if output.exists():
        with output.open("rb") as file:
            head = file.read(HEAD_BYTES)
        if GENERATOR.encode() not in head:
            raise ValueError(f"--output {output}: exists, and is no page of lift_ds; name another file, or remove it.")
