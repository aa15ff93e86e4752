"""Who this process is: rank, world and device, whichever launcher started it."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass

import torch

MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MPI_LOCALNRANKS")


@dataclass(frozen=True)
class Launch:
    """What the launcher's environment says.

    Args:
        rank: This process, 0 to world_size - 1.
        world_size: Number of processes.
        local_rank: This process on its machine.
        local_world_size: Processes on this machine.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which prints and writes."""
        return self.rank == 0


def read_launch() -> Launch:
    """Reads the variables that `deepspeed` and `torchrun` set; maps MPI's; alone without either.

    Raises:
        RuntimeError: Started by srun as several tasks that know nothing of each other, or MPI cannot be loaded.
    """
    if "RANK" not in os.environ:
        if int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1 and not any(name in os.environ for name in MPI_SIZES):
            raise RuntimeError("several srun tasks without torchrun: launchers/train.slurm starts one torchrun a node.")
        if any(name in os.environ for name in MPI_SIZES):
            export_mpi()
        else:
            export_rank(0, 1, 0, 1, "127.0.0.1", free_port())
    local_size = os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("LOCAL_SIZE", os.environ["WORLD_SIZE"]))
    return Launch(
        int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), int(os.environ.get("LOCAL_RANK", "0")), int(local_size)
    )


def export_mpi() -> None:
    """Asks MPI for rank, world and a meeting point; mpi4py is needed only here.

    Raises:
        RuntimeError: The MPI library is missing.
    """
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise RuntimeError(
            f"started by mpirun, but mpi4py cannot load MPI: {error}. Install libmpi (OpenMPI)."
        ) from error
    world = MPI.COMM_WORLD
    local = world.Split_type(MPI.COMM_TYPE_SHARED)
    is_one_machine = world.allreduce(local.Get_size(), op=MPI.MIN) == world.Get_size()
    here = "127.0.0.1" if is_one_machine else socket.gethostname()
    address, port = world.bcast((here, free_port()), root=0)
    export_rank(world.Get_rank(), world.Get_size(), local.Get_rank(), local.Get_size(), address, port)


def export_rank(rank: int, world_size: int, local_rank: int, local_size: int, address: str, port: int) -> None:
    """Sets the variables that torch.distributed reads."""
    values = {
        "RANK": rank,
        "WORLD_SIZE": world_size,
        "LOCAL_RANK": local_rank,
        "LOCAL_WORLD_SIZE": local_size,
        "MASTER_ADDR": address,
        "MASTER_PORT": port,
    }
    os.environ.update({name: str(value) for name, value in values.items()})


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def share_cores(launch: Launch) -> None:
    """Has this process use its share of the machine's cores, unless OMP_NUM_THREADS says how many."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // launch.local_world_size))
