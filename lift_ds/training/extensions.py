"""DeepSpeed's C++ and CUDA operations, compiled when they are first needed: never in the way of another process.

DeepSpeed compiles through torch, in a folder that all environments of a user share, under a lock file that a killed
process leaves behind: whoever comes later waits for it for ever, and says nothing. Here each environment of each
machine has a folder of its own, the lock is one that ends with its process, and who waits says for whom.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.ops.op_builder.builder import OpBuilder

from lift_ds.storage.file_lock import held

ROOT = "TORCH_EXTENSIONS_DIR"
TORCH_LOCK = "lock"  # torch's own, in the operation's folder


def guard_builds() -> None:
    """Has every operation that DeepSpeed compiles from now on be compiled by one process at a time, in our folder.

    None is compiled for its all-reduce in shared memory, which only its tensor-parallel inference calls: the first run
    on a CPU would do so, and take 69 MB of /dev/shm for every rank.
    """
    if get_accelerator().device_name() == "cpu":
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    unguarded = OpBuilder.jit_load
    if hasattr(unguarded, "__wrapped__"):
        return

    @functools.wraps(unguarded)
    def jit_load(self: OpBuilder, verbose: bool = True) -> Any:
        with building(self.name):
            return unguarded(self, verbose)

    OpBuilder.jit_load = jit_load


@contextmanager
def building(name: str) -> Iterator[None]:
    """Holds an operation's folder, without what a killed process left of it.

    Args:
        name: The operation, and its folder below `TORCH_EXTENSIONS_DIR`.

    Raises:
        OSError: No folder can be written.
    """
    root = settle_root()
    folder = root / name

    def say_waiting(holder: str) -> None:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"waiting for DeepSpeed's {name}, which is being compiled by {holder}", flush=True)

    with held(root / f"{name}.held", say_waiting):
        if (folder / TORCH_LOCK).exists():
            _remove_half_built(folder)
        if not (folder / f"{name}.so").is_file():
            print(f"compiling DeepSpeed's {name}: once in this environment, about 40 s, in {folder}", flush=True)
        yield


def _remove_half_built(folder: Path) -> None:  # moved first: the compiler of a killed process may still write there
    aside = Path(tempfile.mkdtemp(prefix=f"{folder.name}-killed-", dir=folder.parent))
    os.rename(folder, aside / folder.name)
    shutil.rmtree(aside, ignore_errors=True)


def settle_root() -> Path:
    """The folder of this environment's operations, made where there is none; torch is told by `TORCH_EXTENSIONS_DIR`.

    It is below the folder that this variable names, or torch's own; below the temporary folder where these cannot be
    written.

    Raises:
        OSError: None of them can.
    """
    from torch.utils.cpp_extension import get_default_build_root

    own = f"lift_ds-{environment_key()}"
    given = os.environ.get(ROOT)
    if given is not None and Path(given).name == own:
        return Path(given)
    root = Path(given or get_default_build_root()).absolute() / own
    try:
        make_private(root)
    except OSError as error:
        instead = Path(tempfile.gettempdir()) / f"torch_extensions-{os.getuid()}" / own
        print(f"{root.parent}: cannot be written ({error.strerror}); compiling in {instead}", flush=True)
        root = instead
        make_private(root.parent)
        make_private(root)
    os.environ[ROOT] = str(root)
    return root


def make_private(folder: Path) -> None:
    """Makes a folder for this user's code, or finds it.

    Raises:
        OSError: It cannot be written, or is another user's, whose code would be run.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise PermissionError(13, "it belongs to another user", str(folder))
    with tempfile.TemporaryFile(dir=folder):
        return


def environment_key() -> str:
    """A hash of all that decides what is compiled: environment, versions, what the processor is and can.

    The machine counts, too: file systems that several machines share do not always pass on locks.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = [f"model name: {platform.processor()}"]
    facts = [
        socket.gethostname(), sys.prefix, sys.version, torch.__version__, str(torch.version.cuda),
        deepspeed.__version__, os.environ.get("CXX", ""), get_accelerator().device_name(), platform.machine(),
        *sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}),
    ]  # fmt: skip
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:12]


@contextmanager
def without_inductor() -> Iterator[None]:
    """Has what DeepSpeed decorates with `torch.compile` meanwhile not import Inductor: parts of an optimizer, Muon.

    It looks whether an optimizer is one that it knows, of which Muon's import alone takes most of the time (0.19.8).
    """
    settle = getattr(torch.compiler, "set_default_backend", lambda backend: None)  # an older torch may have none
    settle("eager")
    try:
        yield
    finally:
        settle(None)  # torch's own
