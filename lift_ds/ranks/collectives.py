"""What moves between ranks besides weights and gradients; every rank calls the same in the same order."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor


class Collectives:
    """The default process group.

    Args:
        device: Where this rank computes; what travels goes through it.
    """

    def __init__(self, device: torch.device) -> None:
        """Stores the device."""
        self.device = device

    @property
    def rank(self) -> int:
        """This rank."""
        return int(torch.distributed.get_rank())

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return int(torch.distributed.get_world_size())

    def all_reduce(self, values: Tensor, op: str = "sum") -> Tensor:
        """Sum or maximum over ranks, in place, on this rank's device; returned on the CPU."""
        moved = values.to(self.device)
        torch.distributed.all_reduce(moved, op=getattr(torch.distributed.ReduceOp, op.upper()))
        return moved.cpu()

    def exchange(self, parts: list[Tensor]) -> list[Tensor]:
        """Sends part r, one-dimensional, to rank r; returns what each rank sent here, on the CPU."""
        sizes = torch.tensor([len(part) for part in parts], device=self.device)
        expected = torch.empty_like(sizes)
        torch.distributed.all_to_all_single(expected, sizes)
        received = torch.empty(int(expected.sum()), dtype=parts[0].dtype, device=self.device)
        sent = torch.cat(parts).to(self.device)
        torch.distributed.all_to_all_single(received, sent, expected.tolist(), sizes.tolist())
        return list(received.cpu().split(expected.tolist()))

    def on_main(self, action: Callable[[], Any]) -> Any:
        """What `action` returns on rank 0, on every rank.

        Raises:
            ValueError: It failed there; every rank raises the same message.
        """
        outcome: list[Any] = [None, None]
        if self.rank == 0:
            try:
                outcome[0] = action()
            except (ValueError, OSError) as error:
                outcome[1] = str(error)
        torch.distributed.broadcast_object_list(outcome, src=0)
        if outcome[1] is not None:
            raise ValueError(outcome[1])
        return outcome[0]

    def gather_objects(self, mine: Any) -> list[Any]:
        """Every rank's object, in rank order, on every rank."""
        gathered: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(gathered, mine)
        return gathered

    def barrier(self) -> None:
        """Waits for every rank."""
        torch.distributed.barrier()


def leave(code: int) -> NoReturn:
    """Leaves the process group and ends this process, without the interpreter's own end.

    About once in some hundred launches a thread of torch's that still wants the interpreter aborts it there, and a
    finished run would be reported as failed.

    Args:
        code: The process's exit status; the group is left in order where it is 0.
    """
    if code == 0:
        torch.distributed.destroy_process_group()
    atexit._run_exitfuncs()  # what monitors still have to write
    if code == 0 and "mpi4py.MPI" in sys.modules:  # mpirun counts a rank that has not said goodbye as a failure
        sys.modules["mpi4py.MPI"].Finalize()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def has_started() -> bool:
    """Whether this process has joined the other ranks."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()
