"""The control group: where ranks wait for each other's work outside the model (hashing, removal, export), on the CPU.

The default group's time-out is for tensors, which all ranks bring at about the same time. Here rank 0 may work for as
long as `LIFT_DS_CONTROL_TIMEOUT` says.
"""

from __future__ import annotations

import fcntl
import os
import resource
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

import torch
from torch.distributed import ProcessGroup

from .launch import CONTROL_LIMIT, CONTROL_MINUTES, number_in
from .meeting import check_others

INTERFACE = "GLOO_SOCKET_IFNAME"
SIOCGIFADDR = 0x8915  # of Linux: the address of an interface

_made: list[tuple[ProcessGroup, ProcessGroup]] = []  # the default group, and its control group


def control_group(limit: timedelta | None = None) -> ProcessGroup:
    """A gloo group of all ranks, whatever the default group is; made by the first call, which all ranks make.

    Args:
        limit: How long ranks wait in it; what `LIFT_DS_CONTROL_TIMEOUT` says where it is not given.

    Raises:
        RuntimeError: The ranks cannot connect.
    """
    default = torch.distributed.group.WORLD
    assert default is not None
    if not _made or _made[0][0] is not default:  # a process may end its default group and begin another
        _made[:] = [(default, gloo_group(limit))]
    return _made[0][1]


def gloo_group(limit: timedelta | None = None) -> ProcessGroup:
    """A new gloo group of all ranks, which all make; `limit` and errors are `control_group`'s."""
    limit = limit or timedelta(minutes=number_in(CONTROL_LIMIT, 1, CONTROL_MINUTES))
    name = interface_towards(os.environ.get("MASTER_ADDR", ""))
    if name is not None:  # gloo would take the one of the host's name, which many machines resolve to themselves
        os.environ.setdefault(INTERFACE, name)
    try:
        return torch.distributed.new_group(backend="gloo", timeout=limit)
    except RuntimeError as error:
        raise RuntimeError(
            f"rank {torch.distributed.get_rank()} on {socket.gethostname()} cannot connect to the other ranks by gloo, "
            f"with {INTERFACE}={os.environ.get(INTERFACE, '')}: {str(error).splitlines()[0]}. Set {INTERFACE} to the "
            "network interface between the machines (`ip route get` and MASTER_ADDR's address name it)"
        ) from error


def allow_open_files() -> None:
    """Lets this process open as many files as the system allows it to, where it was started with fewer.

    A gloo group connects every rank to every other: a file of each rank for each of the others, in each group. Shells
    often start processes with 1,024, which is too few for two groups of 512 ranks.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(OSError, ValueError):  # the system's own limit may be lower than what it calls unlimited
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@contextmanager
def waiting_in_control() -> Iterator[None]:
    """Says why a wait in the control group failed.

    Raises:
        FailedElsewhereError: Another rank has failed.
        RuntimeError: The others were not there in time, or one of them is gone.
    """
    try:
        yield
    except RuntimeError as error:
        check_others()
        reason = str(error).splitlines()[0]
        if "timed out" in reason.lower():
            raise RuntimeError(
                f"rank {torch.distributed.get_rank()} on {socket.gethostname()} waited in vain for the other ranks' "
                f"work (files, export): {reason}. {CONTROL_LIMIT} is the time in minutes (default {CONTROL_MINUTES}): "
                "raise it if they were at work"
            ) from error
        raise RuntimeError(f"another rank has left without a word: {reason}; see what it printed") from error


def interface_towards(address: str) -> str | None:
    """The network interface by which this machine reaches an IPv4 address; `None` for itself, and where unknown."""
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((address, 9))  # sends nothing
        own = probe.getsockname()[0]
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # one without an address
                request = struct.pack("256s", name.encode())
                if socket.inet_ntoa(fcntl.ioctl(probe.fileno(), SIOCGIFADDR, request)[20:24]) == own != "127.0.0.1":
                    return name
    return None
