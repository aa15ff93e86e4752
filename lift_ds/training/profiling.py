"""A torch profile of some steps: a chrome trace of rank 0, for chrome://tracing and perfetto."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

PROFILE_FOLDER = "profile"


class StepProfile:
    """Profiles steps `first` to `last`, counted from 1 as in `metrics.jsonl`, where this process takes them.

    Args:
        steps: First and last step; `None` profiles nothing.
        folder: The run's; the trace goes below it.
        say: Takes a line about what was written, or why not: no run ends for want of a profile.
    """

    def __init__(self, steps: tuple[int, int] | None, folder: Path, say: Callable[[str], None]) -> None:
        self.steps, self.folder, self.say = steps, folder / PROFILE_FOLDER, say
        self.running: profile | None = None
        self.taken: list[int] = []

    def before(self, step: int) -> None:
        """Starts with the first of the steps that is taken; call it before each step."""
        if self.running is None and self.steps is not None and self.steps[0] <= step <= self.steps[1]:
            activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
            self.running = profile(activities=activities)
            self.running.start()

    def after(self, step: int) -> None:
        """Ends with the last one; call it after each step."""
        if self.running is not None and self.steps is not None:
            self.taken.append(step)
            if step == self.steps[1]:
                self._write(self.running)

    def close(self) -> None:
        """Writes what a run that stops early profiled, and says where there was nothing to profile."""
        if self.running is not None:
            self._write(self.running)
        elif self.steps is not None and not self.taken:
            self.say(f"no profile: steps {self.steps[0]} to {self.steps[1]} were not taken since this start of the run")

    def _write(self, running: profile) -> None:
        self.running = None
        name = "-".join(f"{step:06d}" for step in (self.taken[0], self.taken[-1])) if self.taken else "unfinished"
        path = self.folder / f"steps-{name}.json.gz"
        try:
            running.stop()
            self.folder.mkdir(parents=True, exist_ok=True)
            running.export_chrome_trace(str(path))
            self.say(f"profile of rank 0: {path}")
        except (OSError, RuntimeError) as error:
            self.say(f"no profile: {path} cannot be written: {error}")
