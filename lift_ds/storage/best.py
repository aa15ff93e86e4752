"""The best checkpoint of a run, by a measurement: `checkpoints/best` names it as `latest` names the newest.

Its second line says by which value it was chosen, what that was measured on, and which contents had it. So a run that
goes on needs nothing but the folder, and a value that no longer compares is not compared: of other held-out rows, or of
a checkpoint that was written anew since.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

from lift_ds.text_files import load_json, read_text

from .manifest import BEST, MANIFEST, hash_file, point, read_pointer

SIGNS = {"heldout_loss": -1, "solve_rate": 1}  # what is best is largest after multiplication


@dataclass(frozen=True)
class Measured:
    """A value of one of `SIGNS`, and a digest of everything else that it depends on."""

    metric: str
    value: float
    measured_on: str


@dataclass(frozen=True)
class BestCheckpoint:
    """A checkpoint's folder, by what it was chosen, and SHA-256 of its manifest, which stands for its contents."""

    name: str
    measured: Measured
    manifest: str


def read_best(folder: Path) -> BestCheckpoint | None:
    """What `best` in `checkpoints` of a run says; `None` where there is none.

    Raises:
        ValueError: It cannot be read.
    """
    pointer = folder / BEST
    if not pointer.is_file():
        return None
    try:
        facts = load_json(read_text(pointer).partition("\n")[2])
        return BestCheckpoint(read_pointer(pointer), Measured(**facts["measured"]), facts["manifest"])
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{pointer}: cannot be read: {error!r}; remove it to choose the best anew.") from error


def offer(folder: Path, checkpoint: Path, measured: Measured) -> str | None:
    """Points `best` at a checkpoint unless the one so far is better, and can be compared with it.

    Args:
        folder: `checkpoints` of a run.
        checkpoint: A whole one in it.
        measured: Its measurement; one that is not finite is never best.

    Returns:
        What was done and why; `None` where nothing was.

    Raises:
        ValueError: `best` cannot be read.
        OSError: It cannot be written.
    """
    if not math.isfinite(measured.value):
        return None
    best = read_best(folder)
    reason = ""
    if best is not None:
        problem = _why_not_comparable(folder, best, measured)
        sign = SIGNS[measured.metric]
        is_better = sign * measured.value >= sign * best.measured.value  # all solve rates may be 0 at first
        if problem is None and (best.name == checkpoint.name or not is_better):
            return None
        reason = f" (before: {problem or f'{best.measured.value:.4f} at {best.name}'})"
    facts = {"measured": asdict(measured), "manifest": hash_file(checkpoint / MANIFEST).sha256}
    point(folder / BEST, checkpoint.name, json.dumps(facts) + "\n")
    return f"{checkpoint.name} is the best checkpoint, {measured.metric} {measured.value:.4f}{reason}"


def _why_not_comparable(folder: Path, best: BestCheckpoint, measured: Measured) -> str | None:
    manifest = folder / best.name / MANIFEST
    if not manifest.is_file():
        return f"{best.name}, which is no longer there"
    if hash_file(manifest).sha256 != best.manifest:
        return f"{best.name}, which was written anew since"
    if best.measured.metric != measured.metric:
        return f"{best.name} by {best.measured.metric}"
    if best.measured.measured_on != measured.measured_on:
        return f"{best.name}, measured on other data or in another way"
    return None
