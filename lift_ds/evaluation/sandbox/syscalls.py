"""Numbers of the Linux system calls that the filter treats specially."""

from __future__ import annotations

ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
"""By machine: the kernel's audit number, and the column of the tables below."""

LAST_KNOWN = 448
"""The tables are complete up to this number, which both architectures share; later calls are reported as missing."""

CLONE = (56, 220)
CLONE3 = (435, 435)
FCNTL = (72, 25)
IOCTL = (16, 29)
OPEN = (2, None)
OPENAT = (257, 56)
OPENAT2 = (437, 437)

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


def denied_numbers(column: int) -> list[int]:
    """The numbers of `DENIED` for a column of it."""
    entries = (entry.split() for line in DENIED.strip().splitlines() for entry in line.split(";"))
    return [int(entry[1 + column]) for entry in entries if entry[1 + column] != "-"]
