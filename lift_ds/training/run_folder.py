"""The run folder: one run writes there at a time, and all ranks mean the same one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from lift_ds.ranks.shares import Ranks
from lift_ds.storage.file_lock import HeldError, held

LOCK = ".run.lock"


@contextmanager
def claimed(output: str, is_numbered: bool, ranks: Ranks) -> Iterator[str]:
    """Holds the run folder against other runs; the kernel lets go of it when rank 0 is killed.

    Args:
        output: What rank 0 has for it counts.
        is_numbered: It is new, and named by a number: the next free one is taken.
        ranks: All of them call it.

    Yields:
        The folder.

    Raises:
        ValueError: Another run is at work there, or it cannot be written; on every rank.
    """
    with ExitStack() as stack:
        output = ranks.on_main(lambda: str(claim(Path(output), is_numbered, stack)))
        yield output


def claim(folder: Path, is_numbered: bool, stack: ExitStack) -> Path:
    """Makes the folder and holds it while `stack` is open; an empty one goes with it.

    Raises:
        ValueError: Another run is at work there, or it cannot be written.
    """
    try:
        while True:
            try:
                folder.mkdir(parents=True, exist_ok=not is_numbered)
                break
            except FileExistsError:
                if not is_numbered:
                    raise
                folder = folder.with_name(f"{int(folder.name) + 1:03d}")
        stack.callback(remove_empty, folder)
        stack.enter_context(held(folder / LOCK))
    except HeldError as error:
        raise ValueError(
            f"output={folder}: another run is writing there: {error}; wait for its end, or name another folder"
        ) from error
    except OSError as error:
        raise ValueError(f"output={folder}: cannot be written: {error.strerror}; name a place that can") from error
    return folder


def remove_empty(folder: Path) -> None:
    """Removes a folder in which nothing is but the lock: nothing has come of the run."""
    if [path.name for path in folder.iterdir()] == [LOCK]:
        (folder / LOCK).unlink()
        folder.rmdir()
