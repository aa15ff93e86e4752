"""A seccomp filter, in plain Python: after it this process can compute and read, and change nothing outside itself.

Refused with "Operation not permitted": new processes and programs (threads stay possible), signals to other processes,
sockets, opening files for writing, every other change to a file system, shared memory that outlives the process,
changed limits, and calls that administer the machine or a device. The filter cannot be taken off again.

What it is not: files that the user can read stay readable, and the kernel is shared, so it is no virtual machine. It
needs Linux on x86_64 or aarch64; the numbers of aarch64 are from the kernel's tables and have not been tried.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys

from .syscalls import ARCHITECTURES, CLONE, CLONE3, FCNTL, IOCTL, LAST_KNOWN, OPEN, OPENAT, OPENAT2, denied_numbers

PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, SECCOMP_MODE_FILTER = 1, 22, 38, 2
LOAD, JUMP_EQUAL, JUMP_ABOVE, JUMP_ANY_BIT, RETURN = 0x20, 0x15, 0x25, 0x45, 0x06
ALLOW, ERROR, KILL = 0x7FFF0000, 0x00050000, 0x80000000
NUMBER_AT, ARCHITECTURE_AT, ARGUMENTS_AT = 0, 4, 16
CLONE_THREAD = 0x00010000
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
ASKING_IOCTLS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
"""Is it a terminal, how large, how much is there to read; blocking and close-on-exec of a file of one's own."""
SIGNALLING_FCNTLS = (8, 10, 15)
"""Who gets which signal when a file is ready: a way to signal other processes."""

Instruction = tuple[int, int, int, int]


class Program(ctypes.Structure):
    """The kernel's `sock_fprog`."""

    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]


def lock_down() -> None:
    """Installs the filter for this process and all its later threads.

    Raises:
        RuntimeError: This machine has no seccomp filters, or another architecture.
    """
    machine = platform.machine()
    if machine not in ARCHITECTURES:
        raise RuntimeError(f"no filter of system calls for {machine}; untrusted text is run on x86_64 or aarch64 only.")
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in instructions(*ARCHITECTURES[machine]))
    program = Program(len(code) // 8, code)
    control = ctypes.CDLL(None, use_errno=True).prctl
    for option, argument, pointer in (
        (PR_SET_NO_NEW_PRIVS, 1, None),
        (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program)),
    ):
        if control(option, ctypes.c_ulong(argument), pointer, ctypes.c_ulong(0), ctypes.c_ulong(0)) != 0:
            reason = os.strerror(ctypes.get_errno())
            raise RuntimeError(f"the kernel took no filter of system calls ({reason}); untrusted text is not run.")


def die_with_parent(signal: int) -> None:
    """Has the kernel send `signal` to this process when the thread that started it ends.

    Raises:
        RuntimeError: This is not Linux.
    """
    if sys.platform != "linux":
        raise RuntimeError(f"untrusted text is run on Linux only, not on {sys.platform}.")
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal), 0, 0, 0)


def instructions(audit_number: int, column: int) -> list[Instruction]:
    """The filter, for the classic Berkeley packet filter machine: (code, jump if true, jump if false, operand)."""
    program: list[Instruction] = [
        (LOAD, 0, 0, ARCHITECTURE_AT),
        (JUMP_EQUAL, 1, 0, audit_number),
        (RETURN, 0, 0, KILL),
        (LOAD, 0, 0, NUMBER_AT),
        *refuse_where((JUMP_ABOVE, LAST_KNOWN), errno.ENOSYS),  # x86_64's second table begins above, too
        *refuse_where((JUMP_EQUAL, number(CLONE3, column)), errno.ENOSYS),  # libc then takes `clone`
        *refuse_where((JUMP_EQUAL, number(OPENAT2, column)), errno.ENOSYS),  # its flags cannot be read from here
    ]
    for denied in denied_numbers(column):
        program += refuse_where((JUMP_EQUAL, denied), errno.EPERM)
    for call, argument, test, operands, is_allowed in (
        (CLONE, 0, JUMP_ANY_BIT, (CLONE_THREAD,), True),
        (IOCTL, 1, JUMP_EQUAL, ASKING_IOCTLS, True),
        (FCNTL, 1, JUMP_EQUAL, SIGNALLING_FCNTLS, False),
        (OPENAT, 2, JUMP_ANY_BIT, (WRITING,), False),
        (OPEN, 1, JUMP_ANY_BIT, (WRITING,), False),
    ):
        if call[column] is not None:
            program += judge_argument(number(call, column), argument, test, operands, is_allowed)
    return [*program, (RETURN, 0, 0, ALLOW)]


def refuse_where(test: tuple[int, int], error: int) -> list[Instruction]:
    """Refuses with `error` where the loaded number passes the test."""
    code, operand = test
    return [(code, 0, 1, operand), (RETURN, 0, 0, ERROR | error)]


def judge_argument(
    call: int, argument: int, test: int, operands: tuple[int, ...], is_allowed: bool
) -> list[Instruction]:
    """For one call: allows it where the lower half of an argument passes the test with some operand, or refuses it."""
    results = (ALLOW, ERROR | errno.EPERM)
    passed, failed = results if is_allowed else reversed(results)
    body: list[Instruction] = [(LOAD, 0, 0, ARGUMENTS_AT + 8 * argument)]
    for operand in operands:
        body += [(test, 0, 1, operand), (RETURN, 0, 0, passed)]
    body.append((RETURN, 0, 0, failed))
    return [(JUMP_EQUAL, 0, len(body), call), *body]


def number(call: tuple[int | None, int | None], column: int) -> int:
    """A call's number on this architecture."""
    number = call[column]
    assert number is not None
    return number
