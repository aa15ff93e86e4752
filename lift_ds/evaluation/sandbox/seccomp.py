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
import re
import struct
import sys

ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
"""By machine: the kernel's audit number, and its column where a call has two numbers."""
LAST_KNOWN = 448
"""`DENIED` is complete up to this number, which both architectures share; later calls are reported as missing."""
DENIED = """
execve 59 221; execveat 322 281; fork 57 -; vfork 58 -
kill 62 129; tkill 200 130; tgkill 234 131; rt_sigqueueinfo 129 138; rt_tgsigqueueinfo 297 240
pidfd_open 434 434; pidfd_getfd 438 438; pidfd_send_signal 424 424
ptrace 101 117; kcmp 312 272; process_vm_readv 310 270; process_vm_writev 311 271
process_madvise 440 440; process_mrelease 448 448; migrate_pages 256 238; move_pages 279 239
setrlimit 160 164; prlimit64 302 261; setpriority 141 140; ioprio_set 251 30
sched_setaffinity 203 122; sched_setattr 314 274; sched_setparam 142 118; sched_setscheduler 144 119
socket 41 198; io_uring_setup 425 425; io_uring_enter 426 426; io_uring_register 427 427
shmget 29 194; shmat 30 196; shmctl 31 195; semget 64 190; semop 65 193; semctl 66 191; semtimedop 220 192
msgget 68 186; msgsnd 69 189; msgrcv 70 188; msgctl 71 187; mq_open 240 180; mq_unlink 241 181
memfd_create 319 279; memfd_secret 447 447
creat 85 -; truncate 76 45; mkdir 83 -; mkdirat 258 34; mknod 133 -; mknodat 259 33
link 86 -; linkat 265 37; symlink 88 -; symlinkat 266 36
rename 82 -; renameat 264 38; renameat2 316 276; rmdir 84 -; unlink 87 -; unlinkat 263 35
chmod 90 -; fchmod 91 52; fchmodat 268 53; chown 92 -; fchown 93 55; lchown 94 -; fchownat 260 54
utime 132 -; utimes 235 -; futimesat 261 -; utimensat 280 88
setxattr 188 5; lsetxattr 189 6; fsetxattr 190 7; removexattr 197 14; lremovexattr 198 15; fremovexattr 199 16
mount 165 40; umount2 166 39; pivot_root 155 41; chroot 161 51; move_mount 429 429; mount_setattr 442 442
fsopen 430 430; fsconfig 431 431; fsmount 432 432; fspick 433 433; open_tree 428 428
name_to_handle_at 303 264; open_by_handle_at 304 265; quotactl 179 60; swapon 167 224; swapoff 168 225
unshare 272 97; setns 308 268; sethostname 170 161; setdomainname 171 162; acct 163 89; vhangup 153 58
settimeofday 164 170; clock_settime 227 112; adjtimex 159 171; clock_adjtime 305 266; reboot 169 142
init_module 175 105; finit_module 313 273; delete_module 176 106; kexec_load 246 104; kexec_file_load 320 294
bpf 321 280; perf_event_open 298 241; userfaultfd 323 282; iopl 172 -; ioperm 173 -; syslog 103 116
add_key 248 217; request_key 249 218; keyctl 250 219
"""
"""Name, number on x86_64, number on aarch64: processes and signals, other processes' memory, limits, network, memory
that outlives a process, changes to files, mounts, the machine itself."""

PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, SECCOMP_MODE_FILTER = 1, 22, 38, 2
LOAD, JUMP_EQUAL, JUMP_ABOVE, JUMP_ANY_BIT, RETURN = 0x20, 0x15, 0x25, 0x45, 0x06
ALLOW, ERROR, KILL = 0x7FFF0000, 0x00050000, 0x80000000
NUMBER_AT, ARCHITECTURE_AT, ARGUMENTS_AT = 0, 4, 16
CLONE_THREAD = 0x00010000
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
ASKING_IOCTLS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
"""Is it a terminal, how large, how much is there to read; blocking and close-on-exec of a file of one's own."""
SIGNALLING_FCNTLS = (8, 10, 15)  # who gets which signal when a file is ready: a way to signal other processes

Instruction = tuple[int, int, int, int]


class _Program(ctypes.Structure):  # the kernel's `sock_fprog`
    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]


def lock_down() -> None:
    """Installs the filter for this process and all its later threads; a RuntimeError where the machine cannot."""
    machine = platform.machine()
    if machine not in ARCHITECTURES:
        raise RuntimeError(f"no filter of system calls for {machine}; untrusted text is run on x86_64 or aarch64 only.")
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in instructions(*ARCHITECTURES[machine]))
    program = _Program(len(code) // 8, code)
    control = ctypes.CDLL(None, use_errno=True).prctl
    for option, argument, pointer in (
        (PR_SET_NO_NEW_PRIVS, 1, None),
        (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program)),
    ):
        if control(option, ctypes.c_ulong(argument), pointer, ctypes.c_ulong(0), ctypes.c_ulong(0)) != 0:
            reason = os.strerror(ctypes.get_errno())
            raise RuntimeError(f"the kernel took no filter of system calls ({reason}); untrusted text is not run.")


def die_with_parent(signal: int) -> None:
    """Has the kernel send `signal` to this process when the thread that started it ends; a RuntimeError off Linux."""
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
        *refuse_where((JUMP_EQUAL, 435), errno.ENOSYS),  # clone3: libc then takes `clone`
        *refuse_where((JUMP_EQUAL, 437), errno.ENOSYS),  # openat2: its flags cannot be read from here
    ]
    for entry in re.split(r"[;\n]", DENIED.strip()):
        denied = entry.split()[1 + column]
        if denied != "-":
            program += refuse_where((JUMP_EQUAL, int(denied)), errno.EPERM)
    for numbers, argument, test, operands, is_allowed in (
        ((56, 220), 0, JUMP_ANY_BIT, (CLONE_THREAD,), True),  # clone
        ((16, 29), 1, JUMP_EQUAL, ASKING_IOCTLS, True),  # ioctl
        ((72, 25), 1, JUMP_EQUAL, SIGNALLING_FCNTLS, False),  # fcntl
        ((257, 56), 2, JUMP_ANY_BIT, (WRITING,), False),  # openat
        ((2,), 1, JUMP_ANY_BIT, (WRITING,), False),  # open, of x86_64 only
    ):
        for number in numbers[column : column + 1]:
            program += judge_argument(number, argument, test, operands, is_allowed)
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
