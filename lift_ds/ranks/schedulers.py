"""Ranks and where they meet as srun and mpirun tell their tasks in variables: no library of MPI is asked.

All tasks must come to the same port without a word between them: it follows from the job and its step, or, for the
processes that one mpirun has started on one machine, from that mpirun's process.
"""

from __future__ import annotations

import os
import re

FIRST_PORT, NUM_PORTS = 20000, 10000  # below the ephemeral ports
GROUP = re.compile(r"(\d+)(?:\(x(\d+)\))?")  # of SLURM_STEP_TASKS_PER_NODE: 2(x3),1 are 2, 2, 2, 1
FIRST_NODE = re.compile(r"([^,\[]+)(?:\[(\w+)[^\]]*\]([^,\[]*))?")
LOCAL_VARIABLES = {
    "OMPI_COMM_WORLD_SIZE": ("OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    "PMI_SIZE": ("MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
}
SLURM_NEEDED = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_STEP_NODELIST", "SLURM_STEP_TASKS_PER_NODE")

Place = tuple[int, int, int, int, str, int | str]  # rank, world size, local rank, local size, address, port


def first_node(nodes: str) -> str:
    """The first machine of a list as Slurm writes it: `gpu[07-09,12],login` is `gpu07`."""
    found = FIRST_NODE.match(nodes)
    return "" if found is None else "".join(part or "" for part in found.groups())


def tasks_of_nodes(text: str) -> list[int]:
    """Tasks of each machine, from `2(x3),1`."""
    return [int(tasks) for tasks, times in GROUP.findall(text) for _ in range(int(times or 1))]


def place_in_srun(num_tasks: int) -> Place:
    """This task of an srun step; MASTER_ADDR and MASTER_PORT win where they are set.

    Raises:
        RuntimeError: Variables of srun are missing, or do not fit each other.
    """
    missing = [name for name in SLURM_NEEDED if not os.environ.get(name)]
    if missing:
        raise RuntimeError(
            f"several srun tasks (SLURM_STEP_NUM_TASKS={num_tasks}), but not {', '.join(missing)} in the environment: "
            "start with srun itself, or with launchers/train.slurm, which starts one torchrun a node"
        )
    try:
        rank, local_rank, node = (int(os.environ[name]) for name in SLURM_NEEDED[:3])
        of_nodes = tasks_of_nodes(os.environ["SLURM_STEP_TASKS_PER_NODE"])
        if sum(of_nodes) != num_tasks or not 0 <= rank < num_tasks or not 0 <= local_rank < of_nodes[node]:
            raise ValueError
    except (ValueError, IndexError):
        given = ", ".join(f"{name}={os.environ[name]}" for name in SLURM_NEEDED)
        raise RuntimeError(f"SLURM_STEP_NUM_TASKS={num_tasks}, but {given}: they do not fit each other") from None
    address = os.environ.get("MASTER_ADDR") or first_node(os.environ["SLURM_STEP_NODELIST"])
    job, step = (int(re.sub(r"\D", "", os.environ.get(name, "")) or 0) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    port = os.environ.get("MASTER_PORT") or FIRST_PORT + (job + 97 * step) % NUM_PORTS
    return rank, num_tasks, local_rank, of_nodes[node], address, port


def place_in_mpirun(size_name: str, rank_name: str, reason: str) -> Place:
    """This process of an mpirun whose library cannot be asked.

    Args:
        size_name: The variable with the number of processes, which is set.
        rank_name: The one with this process's.
        reason: Why the library cannot be asked.

    Raises:
        RuntimeError: They are on several machines, and nothing says where they meet.
    """
    names = LOCAL_VARIABLES.get(size_name, ("", ""))
    rank, size = int(os.environ[rank_name]), int(os.environ[size_name])
    local_rank, local_size = (os.environ.get(name, "") for name in names)
    address, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    is_one_machine = local_size == str(size)
    if not (local_rank.isdigit() and local_size.isdigit()) or not (is_one_machine or (address and port)):
        raise RuntimeError(
            f"started by mpirun, but mpi4py cannot load MPI: {reason}. Install libmpi (OpenMPI), or set MASTER_ADDR "
            "and MASTER_PORT to where the ranks shall meet"
        )
    meets = FIRST_PORT + os.getppid() % NUM_PORTS
    return rank, size, int(local_rank), int(local_size), address or "127.0.0.1", port or meets
