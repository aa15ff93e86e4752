"""The settings of a run from its command line, in place of those of the run that goes on, where there is one."""

from __future__ import annotations

import argparse
import copy
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from lift_ds.config.deepspeed import read_ds_json, settle_ds_json
from lift_ds.config.loading import read_given, read_recipe, resolve
from lift_ds.config.resuming import (
    JSON_PREFIX,
    Change,
    Meaning,
    differing,
    find_changes,
    find_json_changes,
    inherit_json,
    merged,
    overlay,
)
from lift_ds.config.run import RunConfig
from lift_ds.ranks.shares import Ranks
from lift_ds.section import flat
from lift_ds.training.resumed import Resumed, find_later_start, find_lost_template, find_model_changes, find_resumed
from lift_ds.training.run_files import SourcesError

Opened = TypeVar("Opened")
RUNS = Path("runs")
BUILTIN_RECIPE = Path(str(files("lift_ds") / "assets" / "reasoning.yaml"))
SHORTCUTS = {"model": "model.path", "data": "data.path", "output": "output", "resume": "checkpoint.resume"}


def read_flags(arguments: argparse.Namespace) -> tuple[dict[str, Any], dict[str, str]]:
    """The flags that stand for a key of the run config: their values by that key, and as they were given."""
    values: dict[str, Any] = {}
    texts: dict[str, str] = {}
    for name, key in SHORTCUTS.items():
        given = getattr(arguments, name)
        if given is not None:
            parts = [given] if isinstance(given, str) else given
            values[key] = parts if len(parts) > 1 else parts[0]
            texts[key] = " ".join(f"--{name} {part}" for part in parts)
    return values, texts


def settle_output(run: RunConfig) -> str:
    """The run folder: as named, or the next number below `runs`; the last one where a run is to be resumed."""
    if run.output != "auto":
        return run.output
    numbers = [int(path.name) for path in RUNS.glob("[0-9]*") if path.name.isdigit()]
    last = max(numbers, default=0)
    return str(RUNS / f"{last if run.checkpoint.resume == 'auto' and last else last + 1:03d}")


def attempt(action: Callable[[], Opened], problems: list[str]) -> Opened | None:
    """What an action opens, or `None` where it cannot, which is added to the problems."""
    try:
        return action()
    except SourcesError as error:
        problems += error.problems
    except ValueError as error:
        problems.append(str(error))
    return None


@dataclass
class Settings:
    """The settings of a run, as they are settled; see `Meaning` for `given` and `meant`.

    Args:
        notes: What is to be said at the start.
        is_numbered: Whether the run folder is a new one, named by the next number.
    """

    run: RunConfig
    problems: list[str]
    notes: list[str]
    resumed: Resumed | None
    given: dict[str, str]
    meant: list[str]
    changes: list[Change] = field(default_factory=list)
    is_numbered: bool = False

    def settle_json(self, path: Path, world_size: int, node_size: int) -> dict[str, Any]:
        """DeepSpeed's JSON, but for what model and device decide; adds to problems, notes and changes."""
        loaded, json_problems = read_ds_json(path)
        self.problems += json_problems
        if json_problems:
            return loaded
        recorded = None if self.resumed is None else self.resumed.record.get("deepspeed", {})
        inherited, lines = (loaded, []) if recorded is None else inherit_json(loaded, recorded)
        self.notes += [f"{line}; {path} has none" for line in lines]
        settled, more = settle_ds_json(inherited, path, self.run, world_size, node_size)
        self.problems += more
        if self.resumed is not None and recorded is not None:
            self.given |= {f"deepspeed.{key}": f" (in {path})" for key in flat(loaded)}
            self.changes += find_json_changes(recorded, settled)
            before = self.resumed.record.get("world_size", world_size)
            self.changes += [Change("ranks", before, world_size)] if before != world_size else []
        return settled

    def require_same(self, ranks: Ranks, ds_json: dict[str, Any]) -> None:
        """Checks that all ranks have read the same settings and go on with the same run; all of them call it.

        Raises:
            ValueError: They do not; on every rank.
        """
        resumed = None if self.resumed is None else str(self.resumed.folder)
        mine = flat(self.run.model_dump()) | flat(ds_json, JSON_PREFIX) | {"run that goes on": resumed}
        if self.is_numbered:
            del mine["output"]  # a new folder has the name that rank 0 finds free
        (_, first), *others = ranks.gather_objects((socket.gethostname(), mine))
        for rank, (host, theirs) in enumerate(others, start=1):
            changes = differing(first, theirs)
            if changes:
                listed = "; ".join(map(str, changes[:4]))
                raise ValueError(
                    f"rank {rank} on {host} starts with other settings than rank 0: {listed}. All nodes need the same "
                    "files: name recipe, output and checkpoint on a file system that they share"
                )

    def judge(self, model_folder: Path | None) -> None:
        """Lists what differs from the run that goes on, or adds why it is refused to the problems."""
        if self.resumed is None:
            if self.meant and self.run.checkpoint.resume == "none":
                self.problems.append("--change: there is no run that goes on; remove it, or add --resume")
            elif self.meant:
                self.notes.append(f"--change: nothing to change, there is no checkpoint in {self.run.output} yet")
            return
        meaning = Meaning(self.given, self.meant, self.resumed.has_steps)
        self.problems += [problem for change in self.changes if (problem := meaning.problem(change)) is not None]
        differ = self.judge_model(self.resumed, model_folder)
        for is_wrong, line in meaning.misnamed([*self.changes, *differ]):
            (self.problems if is_wrong else self.notes).append(line)
        self.problems += find_lost_template(self.resumed, self.run.data.chat_template)
        listed = "; ".join(map(str, self.changes)) or "none"
        self.notes.append(f"settings of {self.resumed.folder}; changes: {listed}")

    def judge_model(self, resumed: Resumed, folder: Path | None) -> list[Change]:
        """The same for the model's config, whether another folder is named or the same one has changed."""
        if folder is None:
            return []
        differ = "; ".join(attempt(partial(find_model_changes, resumed, folder), self.problems) or [])
        if not differ:
            return []
        what = f"model.path={self.run.model.path}: another model than the run's: {differ}"
        if "model.path" in self.meant:
            self.notes.append(what)
        else:
            self.problems.append(f"{what}; name the one that it was made with, or mean it: --change model.path")
        return [Change("model.path", None, None)]


def read_settings(arguments: argparse.Namespace) -> Settings:
    """The run config of flags, recipe and overrides, and of the run that they go on with."""
    flags, texts = read_flags(arguments)
    given, problems = read_given(arguments.config, arguments.overrides, flags, texts)
    on_line = [*flags, *(override.partition("=")[0] for override in arguments.overrides)]
    meant = [key for keys in arguments.change or [] for key in keys.split(",") if key]
    asked, _ = resolve(copy.deepcopy(given))  # for output and resume; what is wrong is found again below
    output = settle_output(asked)
    resumed = attempt(partial(find_resumed, Path(output), asked.checkpoint.resume), problems)
    if resumed is None:
        if arguments.config is None and not {"data.path", "data.sources", "model.path"} & set(on_line):
            given = merged(read_recipe(BUILTIN_RECIPE)[0], given)
        run, more = resolve(given)
        run = run.model_copy(update={"output": output})
        is_numbered = asked.output == "auto" and asked.checkpoint.resume == "none"
        return Settings(run, problems + more, [], None, {}, meant, is_numbered=is_numbered)
    before, damaged = resolve(overlay(resumed.record["run"], {}))
    values = overlay(resumed.record["run"], given)
    run, more = resolve(values)
    problems += [f"{resumed.folder}: {problem}" for problem in damaged] + more
    kept = flat(values)  # without what is wrong
    sources = {key: "" if key in on_line else f" (in {arguments.config})" for key in flat(given) if key in kept}
    if rows := {"data.path", "data.sources"} & set(sources):  # one of them takes the other's place
        sources = dict.fromkeys(("data.path", "data.sources"), sources[rows.pop()]) | sources
    notes = find_later_start(resumed, Path(output)) if asked.checkpoint.resume == "auto" else []
    run = run.model_copy(update={"output": output})
    return Settings(run, problems, notes, resumed, sources, meant, find_changes(before, run))
