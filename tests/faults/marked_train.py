"""`launchers/train.py` on a rank that marks the phase it is in, and may die in one of them.

MARKS is a folder: while this rank is in a phase, the file `PHASE-RANK` is there, and at its end `seconds-RANK.json` has
how long each lasted. FAULT is `PHASE ENTRY SECONDS`, of one rank: that long after the phase was entered for the ENTRYth
time the process gets SIGKILL, at whatever instruction it is then.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PHASES = ("starting", "training", "updating", "syncing", "measuring", "saving", "writing", "publishing", "exporting")


class Marks:
    """The phases of this rank."""

    def __init__(self) -> None:
        self.folder, self.rank = Path(os.environ["MARKS"]), os.environ["RANK"]
        self.fault = os.environ.get("FAULT", "").split()
        self.seconds: dict[str, list[float]] = {}
        self.lock = threading.Lock()  # checkpoints are written by a thread

    def enter(self, phase: str) -> None:
        """A phase begins."""
        (self.folder / f"{phase}-{self.rank}").touch()
        with self.lock:
            self.seconds.setdefault(phase, []).append(-time.monotonic())
        if self.fault and self.fault[0] == phase and int(self.fault[1]) == len(self.seconds[phase]):
            threading.Timer(float(self.fault[2]), self.die).start()

    def leave(self, phase: str) -> None:
        """It ends."""
        (self.folder / f"{phase}-{self.rank}").unlink()
        with self.lock:
            self.seconds[phase][-1] += time.monotonic()
            (self.folder / f"seconds-{self.rank}.json").write_text(json.dumps(self.seconds))

    def die(self) -> None:
        """Leaves the time of death, and dies."""
        (self.folder / "killed").write_text(repr(time.time()))
        os.kill(os.getpid(), signal.SIGKILL)

    @contextmanager
    def phase(self, phase: str) -> Iterator[None]:
        """A block that is one."""
        self.enter(phase)
        yield
        self.leave(phase)

    def wrap(self, owner: Any, name: str, phase: str) -> None:
        """Has a function be a phase."""
        function: Callable[..., Any] = getattr(owner, name)

        @functools.wraps(function)
        def marked(*arguments: Any, **options: Any) -> Any:
            with self.phase(phase):
                return function(*arguments, **options)

        setattr(owner, name, marked)


def main() -> None:
    marks = Marks()
    marks.enter("starting")
    from lift_ds.cli.train import main as train
    from lift_ds.training import saving, trainer
    from lift_ds.training.buffers import DifficultyBuffers
    from lift_ds.training.engine import Engine
    from lift_ds.training.final_export import FinalExport
    from lift_ds.training.measure import Measurements

    first_steps = trainer.train_steps

    def train_steps(*arguments: Any) -> Any:
        marks.leave("starting")
        return first_steps(*arguments)

    trainer.train_steps = train_steps
    for owner, name, phase in (
        (Engine, "forward_backward", "training"),
        (Engine, "update", "updating"),
        (DifficultyBuffers, "sync", "syncing"),
        (Measurements, "heldout", "measuring"),
        (saving.Saver, "begin", "saving"),
        (saving.Saver, "_write_own", "writing"),
        (saving, "publish_checkpoint", "publishing"),
        (FinalExport, "write", "exporting"),
    ):
        marks.wrap(owner, name, phase)
    train()


if __name__ == "__main__":
    main()
