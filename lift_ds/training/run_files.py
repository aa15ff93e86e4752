"""What a run names, found and not read yet: its own folder, its model's with the config, the sources of its data."""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from transformers import PretrainedConfig

from lift_ds.config.run import RunConfig
from lift_ds.data.settings import SourceConfig
from lift_ds.data.sources import BUILTIN_PREFIX, Retry, SourceGroup, open_groups
from lift_ds.models.families import read_config
from lift_ds.models.weights import BUILTIN_BASE, check_fit, check_names, parameter_shapes, resolve_folder
from lift_ds.ranks.once import ALONE, Once
from lift_ds.ranks.shares import Ranks
from lift_ds.storage.checkpoint_weights import CheckpointWeights, checkpoint_at
from lift_ds.storage.file_lock import HeldError, held
from lift_ds.storage.manifest import HF_FOLDER

LOCK, TOKEN = ".run.lock", ".run.token"
SHARED_SECONDS = 40.0  # NFS may answer from what it knew of a folder for 30 s
POLL_SECONDS = 0.2


@contextmanager
def claimed(output: str, is_numbered: bool, ranks: Ranks) -> Iterator[str]:
    """Holds the run folder, by rank 0's name, against other runs; the kernel lets go of it when rank 0 is killed.

    Args:
        output: The folder.
        is_numbered: It is new, and named by a number: the next free one is taken, and yielded.
        ranks: All of them call it.

    Raises:
        ValueError: Another run is at work there, it cannot be written, or some ranks have another folder of that name;
            on every rank.
    """
    with ExitStack() as stack:
        claimed = ranks.on_main(lambda: str(_claim(Path(output), is_numbered, stack)))
        check_shared(Path(claimed), ranks)
        yield claimed


def _claim(folder: Path, is_numbered: bool, stack: ExitStack) -> Path:
    try:
        while True:
            try:
                folder.mkdir(parents=True, exist_ok=not is_numbered)
                break
            except FileExistsError:
                if not is_numbered:
                    raise
                folder = folder.with_name(f"{int(folder.name) + 1:03d}")
        stack.callback(_remove_if_empty, folder)
        stack.enter_context(held(folder / LOCK))
    except HeldError as error:
        raise ValueError(
            f"output={folder}: another run is writing there: {error}; wait for its end, or name another folder"
        ) from error
    except OSError as error:
        raise ValueError(f"output={folder}: cannot be written: {error.strerror}; name a place that can") from error
    return folder


def check_shared(folder: Path, ranks: Ranks) -> None:
    """Checks that every rank sees the run folder that rank 0 writes: it reads there what rank 0 has just written.

    Raises:
        ValueError: Some ranks do not; on every rank.
    """
    path, token = folder / TOKEN, ranks.on_main(lambda: _write_token(folder / TOKEN))
    place = None if _reads(path, token) else f"rank {ranks.rank} on {socket.gethostname()}"
    others = [place for place in ranks.gather_objects(place) if place is not None]
    if ranks.rank == 0:
        path.unlink(missing_ok=True)
    if others:
        listed = ", ".join(others[:4]) + (f" and {len(others) - 4} more" if len(others) > 4 else "")
        raise ValueError(
            f"output={folder}: what rank 0 writes there is not seen by {listed}: on a node's own disk, or in another "
            "working folder? Name a folder on a file system that all nodes share, with its whole path"
        )


def _write_token(path: Path) -> str:
    token = secrets.token_hex(16)
    path.write_text(token, encoding="ascii")
    return token


def _reads(path: Path, token: str) -> bool:
    deadline = time.monotonic() + SHARED_SECONDS
    while True:
        with suppress(OSError, ValueError):
            if path.read_text(encoding="ascii") == token:
                return True
        if time.monotonic() > deadline:
            return False
        for folder in (path.parent.parent, path.parent):  # opening a folder has NFS ask the server again
            with suppress(OSError):
                os.listdir(folder)
        time.sleep(POLL_SECONDS)


def _remove_if_empty(folder: Path) -> None:
    if [path.name for path in folder.iterdir()] == [LOCK]:  # nothing has come of the run
        (folder / LOCK).unlink()
        folder.rmdir()


@dataclass(frozen=True)
class ModelFolder:
    """Where the model of `model.path` is on this machine, and what its config says.

    `checkpoint` is set where the weights are those of another run's: `folder` is then its config and tokenizer.
    """

    path: str
    folder: Path
    config: PretrainedConfig
    checkpoint: Path | None = None

    def fetch_weights(self, once: Once = ALONE) -> ModelFolder:
        """The same with the weights, which only a hub name may lack; their names can tell the family, too.

        Raises:
            ValueError: They do not fit the config, cannot be read, or contradict each other.
        """
        if self.checkpoint is not None:
            check_names(
                parameter_shapes(self.config), CheckpointWeights(self.checkpoint).shapes(), str(self.checkpoint)
            )
            return self
        folder = once.per_node("fetching the weights", partial(resolve_folder, self.path))
        is_here = self.path == BUILTIN_BASE or Path(self.path).is_dir()
        model = self if is_here else ModelFolder(self.path, folder, read_config(folder))
        check_fit(model.config, model.folder)
        return model


def open_model(path: str, with_weights: bool = True, once: Once = ALONE) -> ModelFolder:
    """Resolves `model.path`: a folder, a checkpoint, a hub name, which each machine fetches once, or `builtin:base`.

    Raises:
        ValueError: There is no such model, its config is of no known family, or a checkpoint is not whole.
    """

    def find() -> tuple[Path | None, Path]:
        checkpoint = checkpoint_at(path)
        return checkpoint, resolve_folder(path, with_weights) if checkpoint is None else checkpoint / HF_FOLDER

    checkpoint, folder = once.per_node("finding the model", find)
    return ModelFolder(path, folder, read_config(folder), checkpoint)


class SourcesError(ValueError):
    """Everything that is wrong with what a run is to read, one problem a line."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__(problems)  # so that it can be sent to other ranks

    def __str__(self) -> str:
        return "\n".join(self.problems)


@dataclass(frozen=True)
class RunSources:
    """The files of a run in the config's order, none of their rows read; `held_out` is `None` for training rows."""

    training: list[SourceGroup]
    held_out: list[SourceGroup] | None


def list_sources(run: RunConfig) -> RunSources:
    """Finds the files that a run reads.

    Raises:
        SourcesError: Some are missing or empty, or their kind is not known; all of them at once.
        ConnectionError: A server did not answer.
    """
    problems: list[str] = []

    def open_group(source: SourceConfig, split: str, builtin_rows: int) -> SourceGroup:
        group = SourceGroup(", ".join(source.paths()), [])
        for path in source.paths():  # each alone: what is wrong with one says nothing of the others
            try:
                part = open_groups(
                    [source.model_copy(update={"path": path})], run.data.builtin_seed, split, builtin_rows, Retry()
                )[0]
            except ValueError as error:
                problems.append(str(error))
            else:
                group = replace(part, name=group.name, sources=[*group.sources, *part.sources])
        return group

    sources = run.data.source_list()
    training = [open_group(source, "train", run.data.builtin_rows) for source in sources]
    held_out = None
    if run.eval.path is not None:
        held_out = [open_group(SourceConfig(path=run.eval.path), "test", run.eval.rows)]
    elif (
        run.eval.rows
        and not problems
        and all(path.startswith(BUILTIN_PREFIX) for source in sources for path in source.paths())
    ):  # built-in tasks have a test split
        held_out = [open_group(source, "test", run.eval.rows) for source in sources]
    if problems:
        raise SourcesError(problems)
    return RunSources(training, held_out)
