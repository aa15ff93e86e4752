"""A checkpoint on its way from the ranks' memory to the disk: at once, or behind the training.

    begin           every rank: its state is written, or copied into host memory
    files           every rank: what was copied is written; each rank syncs and hashes what it wrote
    publication     rank 0: the small files, the manifest, the rename; old checkpoints go

Behind the training, the last two are done by a thread of each rank while the next steps are taken. The ranks agree
between two steps that all have ended one; what failed on any of them is then raised on all. One checkpoint is on its
way at a time: the next one waits for it. The files are the same, byte for byte, but that they name the GPU of its
tensors where they are written at once.
"""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from lift_ds.storage.manifest import (
    CheckpointManifest,
    FileRecord,
    checkpoint_name,
    publish_checkpoint,
    remove_old,
    sync_and_hash,
    write_manifest,
)
from lift_ds.storage.staging import TEMPORARY_PREFIX
from lift_ds.storage.zero_files import ZERO_TAG

from .checkpoint import Comparison, Contents, agree, check_space, has_host_memory, not_written
from .engine import Engine
from .host_copy import HostCopies


class TakenFiles:
    """DeepSpeed's writer of checkpoint files, in whose place `take` gets each file's content and path."""

    def __init__(self, writer: Any, take: Callable[[Any, Path], None]) -> None:
        self.writer, self.take = writer, take

    def save(self, state_dict: Any, path: str) -> None:
        """As DeepSpeed calls it."""
        self.take(state_dict, Path(path))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.writer, name)


@dataclass
class UnderWay:
    """A checkpoint that is not there yet.

    Args:
        step: Optimizer steps taken.
        temporary: Where it is written.
        final: Its folder when it is there.
        lanes: Data position.
        comparisons: Those of the contents, as they were.
        behind: Whether training goes on meanwhile.
        began: When, by the monotonic clock.
        afterwards: What rank 0 does with the folder once it is there; it may have something to say.
        work: What this rank does for it now.
        is_written: Whether all its files are, so that it is being published.
        stall_seconds: For how long training stood still for it.
    """

    step: int
    temporary: Path
    final: Path
    lanes: dict[str, Any]
    comparisons: Sequence[Comparison]
    behind: bool
    began: float
    afterwards: list[Callable[[Path], str | None]] = field(default_factory=list)
    work: Future[Any] = field(default_factory=Future)
    is_written: bool = False
    stall_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        """How long ago it began."""
        return time.monotonic() - self.began

    def start(self, action: Callable[[], Any]) -> None:
        """Does the next part of the work: in a thread, where training goes on."""
        self.work = Future()
        if self.behind:
            threading.Thread(target=_fulfil, args=(self.work, action), name="checkpoint", daemon=True).start()
        else:
            _fulfil(self.work, action)


def _fulfil(work: Future[Any], action: Callable[[], Any]) -> None:
    try:
        work.set_result(action())
    except BaseException as error:  # raised by whoever asks for the result
        work.set_exception(error)


class Saver:
    """Writes a run's checkpoints; all ranks call its methods together.

    Args:
        engine: The training engine.
        folder: `checkpoints` of the run.
        contents: What they hold.
        keep: How many of the newest ones stay.
        tell: Gets each checkpoint that has come to be there, and what `afterwards` had to say.
    """

    def __init__(
        self, engine: Engine, folder: Path, contents: Contents, keep: int, tell: Callable[[UnderWay, list[str]], None]
    ) -> None:
        self.engine, self.folder, self.contents, self.keep, self.tell = engine, folder, contents, keep, tell
        self.writer, self.copies = engine.ds.checkpoint_engine, HostCopies()
        self.under_way: UnderWay | None = None

    def begin(self, step: int, lanes: dict[str, Any], behind: bool) -> bool:
        """Takes the state of all ranks after `step` steps; the one before is ended first.

        Args:
            step: Optimizer steps taken.
            lanes: Data position.
            behind: Whether training is to go on while it is written.

        Returns:
            Whether it does: not where a host has too little memory for the copy.

        Raises:
            DiskFullError: There is too little space to begin; every rank raises it.
            RuntimeError: A rank could not write. Older checkpoints are untouched.
        """
        self.finish()
        began, only_trained = time.monotonic(), self.contents.base is not None
        final = self.folder / checkpoint_name(step)
        temporary = self.folder / f"{TEMPORARY_PREFIX}{final.name}"
        check_space(self.engine, self.folder, only_trained, temporary)
        behind = behind and (self.copies.num_bytes > 0 or has_host_memory(self.engine, only_trained))
        comparisons = copy.deepcopy(self.contents.comparisons)
        way = UnderWay(step, temporary, final, lanes, comparisons, behind, began)
        files = self._take_state(way)
        way.start(lambda: self._write_own(way, files))
        self.under_way = way
        way.stall_seconds = time.monotonic() - began
        return behind

    def _take_state(self, way: UnderWay) -> dict[Path, Any]:
        """This rank's files of weights, optimizer and difficulty: what is still to be written, by path, or `None`."""
        ds, files = self.engine.ds, dict[Path, Any]()
        self.copies.begin()

        def take(content: Any, path: Path) -> None:
            if way.behind:
                files[path] = self.copies.copy(content)
            else:
                self._write(content, path)
                files[path] = None

        ds.checkpoint_engine = TakenFiles(self.writer, take)
        try:
            only_trained = self.contents.base is not None
            ds.save_checkpoint(str(way.temporary), tag=ZERO_TAG, exclude_frozen_parameters=only_trained)
        except (OSError, RuntimeError) as error:
            # the other ranks may be inside a collective of DeepSpeed's: nothing can be agreed on any more, so this
            # process ends, and the launcher ends the others
            raise not_written(way.temporary, f"rank {self.engine.rank}: {error}") from error
        finally:
            ds.checkpoint_engine = self.writer

        def take_difficulties() -> None:
            for name, tensors in self.contents.buffers.files().items() if self.contents.buffers else ():
                take(tensors, way.temporary / name)

        agree(self.engine, take_difficulties, way.final)
        return files

    def _write(self, content: Any, path: Path) -> None:
        if path.suffix == ".safetensors":
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(content, path)
        else:
            self.writer.save(content, str(path))

    def _write_own(self, way: UnderWay, files: dict[Path, Any]) -> dict[str, FileRecord]:
        for path, content in files.items():
            if content is not None:
                self._write(content, path)
        return {str(path.relative_to(way.temporary)): sync_and_hash(path) for path in files}

    def _publish(self, way: UnderWay, files: dict[str, FileRecord]) -> list[str]:
        contents, temporary = self.contents, way.temporary
        contents.write(temporary, way.lanes, way.comparisons)
        for path in sorted(temporary.rglob("*")):
            name = str(path.relative_to(temporary))
            if path.is_file() and name not in files:
                files[name] = sync_and_hash(path)
        engine = self.engine
        write_manifest(
            temporary, CheckpointManifest(way.step, engine.world_size, engine.stage, contents.fingerprint, files)
        )
        publish_checkpoint(temporary, way.final)
        remove_old(self.folder, way.step, self.keep)
        return [message for action in way.afterwards if (message := action(way.final)) is not None]

    def poll(self) -> None:
        """Goes on with the checkpoint that is on its way, where all ranks have ended their part.

        Raises:
            RuntimeError: Some rank could not write; every rank raises it.
        """
        if self.under_way is None:
            return
        began, way = time.monotonic(), self.under_way
        is_done = self.engine.all_reduce(torch.tensor([float(way.work.done())])) == self.engine.world_size
        way.stall_seconds += time.monotonic() - began
        if is_done:
            self._go_on()

    def finish(self) -> None:
        """Waits for the checkpoint that is on its way, if any; errors as of `poll`."""
        while self.under_way is not None:
            self._go_on()

    def _go_on(self) -> None:
        """Ends a part of the work, waiting for it, and begins the next one."""
        way, began, engine = self.under_way, time.monotonic(), self.engine
        assert way is not None
        self.under_way = None  # unless nothing failed and more is to be done
        result = agree(engine, way.work.result, way.final)
        if not way.is_written:
            files = {name: record for part in engine.gather_objects(result) for name, record in part.items()}
            way.is_written, self.under_way = True, way
            way.start(lambda: self._publish(way, files) if engine.rank == 0 else [])
        way.stall_seconds += time.monotonic() - began
        if self.under_way is None:
            self.tell(way, result)

    def afterwards(self, action: Callable[[Path], str | None]) -> None:
        """Has rank 0 act on the folder of the checkpoint that is on its way, once it is there."""
        assert self.under_way is not None
        self.under_way.afterwards.append(action)
