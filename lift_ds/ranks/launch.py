"""Who this process is: rank, world and device, whichever launcher started it."""

from __future__ import annotations

import multiprocessing
import os
import socket
from dataclasses import dataclass

from .schedulers import place_in_mpirun, place_in_srun

EXPORTED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
NEEDED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
LOCAL_SIZES = ("LOCAL_WORLD_SIZE", "LOCAL_SIZE")  # of torchrun, of deepspeed
MPI_RANKS = {
    "OMPI_COMM_WORLD_SIZE": "OMPI_COMM_WORLD_RANK",
    "PMI_SIZE": "PMI_RANK",
    "MPI_LOCALNRANKS": "MPI_LOCALRANKID",
}
TIME_LIMIT = "DEEPSPEED_TIMEOUT"  # DeepSpeed's own: minutes that ranks wait for each other
CONTROL_LIMIT = "LIFT_DS_CONTROL_TIMEOUT"  # minutes that ranks wait for each other's work outside the model
CONTROL_MINUTES = 120
SLURM_TASKS = "SLURM_STEP_NUM_TASKS"
REMEDY = (
    "start with `deepspeed --num_gpus 2 SCRIPT ...` or `torchrun --nproc_per_node 2 SCRIPT ...`, which set all of them"
)


@dataclass(frozen=True)
class Launch:
    """What the launcher's environment says."""

    rank: int  # this process, 0 to world_size - 1
    world_size: int
    local_rank: int  # this process on its machine
    local_world_size: int  # processes on this machine

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which prints and writes."""
        return self.rank == 0


def read_launch() -> Launch:
    """Reads the variables that `deepspeed` and `torchrun` set; maps srun's and MPI's; alone without any.

    Raises:
        RuntimeError: Some of them are set and some are not, or they say what cannot be; MPI knows of no other process,
            or cannot be loaded and nothing says where processes on several machines meet.
    """
    given = [name for name in NEEDED if os.environ.get(name)]
    mpi_sizes = [name for name in MPI_RANKS if os.environ.get(name)]
    knows_rank = bool({"RANK", "WORLD_SIZE", "LOCAL_RANK"} & set(given))
    if mpi_sizes and not knows_rank:
        export_mpi(mpi_sizes)
    elif not knows_rank and number_in(SLURM_TASKS, 1, 1) > 1:
        export_rank(*place_in_srun(number_in(SLURM_TASKS, 1)))
    elif not given:
        export_rank(0, 1, 0, 1, "127.0.0.1", free_port())
    elif len(given) < len(NEEDED):
        missing = ", ".join(name for name in NEEDED if name not in given)
        here = ", ".join(f"{name}={os.environ[name]}" for name in given)
        raise RuntimeError(
            f"{here} in the environment, but not {missing}: {REMEDY}; for one process: unset {' '.join(given)}"
        )
    world_size = number_in("WORLD_SIZE", 1)
    local_size = min(number_in(name, 1, world_size) for name in LOCAL_SIZES)
    number_in("MASTER_PORT", 1, end=2**16)
    number_in(TIME_LIMIT, 1, 10)
    number_in(CONTROL_LIMIT, 1, CONTROL_MINUTES)
    rank = number_in("RANK", 0, end=world_size, of=f"WORLD_SIZE={world_size}")
    local_rank = number_in("LOCAL_RANK", 0, end=local_size, of=f"{local_size} processes on this machine")
    if world_size == 1 and "TORCHELASTIC_RUN_ID" not in os.environ:
        for name in mpi_sizes:
            if number_in(name, 1) > 1:
                raise RuntimeError(f"WORLD_SIZE=1, but {name}={os.environ[name]}: unset {' '.join(NEEDED)}")
    return Launch(rank, world_size, local_rank, local_size)


def number_in(name: str, first: int, default: int | None = None, end: int | None = None, of: str = "") -> int:
    """A variable of the environment, or its default: a whole number from `first` to less than `end`.

    Raises:
        RuntimeError: It is no such number; the message says with `of` what `end` comes from.
    """
    text = os.environ.get(name, "")
    if not text and default is not None:
        return default
    if not (text.isascii() and text.isdigit()) or int(text) < first or (end is not None and int(text) >= end):
        remedy = f"; {REMEDY}" if name in (*NEEDED, *LOCAL_SIZES) else ""
        allowed = f"a whole number from {first}" + ("" if end is None else f" to {end - 1}")
        raise RuntimeError(f"{name}={text}: {allowed} is needed{' with ' if of else ''}{of}{remedy}")
    return int(text)


def check_semaphores(key: str) -> None:
    """Checks that the processes that a key asks for can be given queues, which need a little of /dev/shm.

    Raises:
        RuntimeError: It is full, missing or cannot be written.
    """
    try:
        multiprocessing.get_context("spawn").Lock()
    except OSError as error:
        raise RuntimeError(
            f"{key} needs a little of /dev/shm, which fails: {error.strerror}; see df /dev/shm, or set it to 0"
        ) from error


def export_mpi(sizes: list[str]) -> None:
    """Asks MPI for rank, world and a meeting point, unless MASTER_ADDR and MASTER_PORT name one; needs mpi4py.

    Args:
        sizes: Names of variables that say how many processes mpirun has started.

    Raises:
        RuntimeError: The MPI library is another one than mpirun's; variables of mpirun are missing.
    """
    num_started = [number_in(name, 1) for name in sizes]
    for name in sizes:
        if not os.environ.get(MPI_RANKS[name]):
            raise RuntimeError(
                f"{name}={os.environ[name]} in the environment, but not {MPI_RANKS[name]}: start with `mpirun -np 2 "
                f"python SCRIPT ...`, which sets both; for one process: unset {name}"
            )
        number_in(MPI_RANKS[name], 0, end=number_in(name, 1), of=f"{name}={os.environ[name]}")
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        name = sizes[0]
        export_rank(*place_in_mpirun(name, MPI_RANKS[name], str(error)))
        return
    world = MPI.COMM_WORLD
    if world.Get_size() == 1 < max(num_started):
        library = MPI.Get_library_version().split(",")[0].strip()
        raise RuntimeError(
            f"{sizes[0]}={os.environ[sizes[0]]}, but MPI knows of this process only: use the mpirun of the library "
            f"that mpi4py loads ({library}); for one process: unset {' '.join(sizes)}"
        )
    local = world.Split_type(MPI.COMM_TYPE_SHARED)
    is_one_machine = world.allreduce(local.Get_size(), op=MPI.MIN) == world.Get_size()
    here = "127.0.0.1" if is_one_machine else socket.gethostname()
    address = os.environ.get("MASTER_ADDR") or here
    address, port = world.bcast((address, number_in("MASTER_PORT", 1, free_port(), end=2**16)), root=0)
    export_rank(world.Get_rank(), world.Get_size(), local.Get_rank(), local.Get_size(), address, port)


def export_rank(rank: int, world_size: int, local_rank: int, local_size: int, address: str, port: int | str) -> None:
    """Sets the variables that torch.distributed reads."""
    values = (rank, world_size, local_rank, local_size, address, port)
    os.environ.update({name: str(value) for name, value in zip(EXPORTED, values, strict=True)})


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
