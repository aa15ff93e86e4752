"""Child processes: what a program may do, and what it is kept from; every attack is real, with short limits."""

import os
import platform
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lift_ds.evaluation.judging import Checks
from lift_ds.evaluation.sandbox import Child, Failure, Limits
from lift_ds.evaluation.sandbox.seccomp import ARCHITECTURES, DENIED, LAST_KNOWN, Instruction, instructions
from tests.conftest import REPOSITORY, clean_environment

LIMITS = Limits(seconds=5.0, memory_mib=512)
SHORT = Limits(seconds=0.5, memory_mib=512)


def passes(source, limits=LIMITS, may_exit=False):
    with Checks(limits) as checks:
        return checks.run_program(source, may_exit)


@pytest.mark.parametrize(
    "source",
    [
        "import math, re, json, collections\nassert math.comb(5, 2) == 10",
        "open('/etc/hostname').read()",
        "import threading\nt = threading.Thread(target=int)\nt.start()\nt.join()",
        "print('x' * 100_000)",
        "import os\nassert os.listdir() == [] and os.getcwd() == os.environ['HOME']",
        "import sys\nassert sys.stdin.read() == ''",
    ],
)
def test_honest_programs_pass(source):
    assert passes(source).holds


@pytest.mark.parametrize(
    ("attack", "error"),
    [
        ("import os\nwhile True: os.fork()", "PermissionError"),
        ("import subprocess\nsubprocess.run(['true'])", "PermissionError"),
        ("import multiprocessing as m\nm.Process(target=print).start()", "PermissionError"),
        ("import os\nassert os.system('true') == 0", "AssertionError"),
        ("import os\nos.execv('/bin/true', ['true'])", "PermissionError"),
        ("import socket\nsocket.create_connection(('127.0.0.1', 9))", "PermissionError"),
        ("import os\nos.kill(os.getppid(), 9)", "PermissionError"),
        ("import os\nos.killpg(0, 9)", "PermissionError"),
        ("open('here', 'w')", "PermissionError"),
        ("open({victim!r}, 'w')", "PermissionError"),
        ("open({victim!r}, 'r+')", "PermissionError"),
        ("import os\nos.remove({victim!r})", "PermissionError"),
        ("import os\nos.rename({victim!r}, {victim!r} + '2')", "PermissionError"),
        ("import os\nos.truncate({victim!r}, 0)", "PermissionError"),
        ("import os\nos.chmod({victim!r}, 0)", "PermissionError"),
        ("import os\nos.utime({victim!r})", "PermissionError"),
        ("import os\nos.mkdir('/tmp/harm')", "PermissionError"),
        ("import os\nos.symlink({victim!r}, 'link')", "PermissionError"),
        (
            "import fcntl\nfcntl.ioctl(open({victim!r}), 0x40086602, bytes(8))",
            "PermissionError",
        ),  # attributes of a file
        ("import fcntl, os\nfcntl.fcntl(0, fcntl.F_SETOWN, os.getppid())", "PermissionError"),
        ("import resource as r\nr.setrlimit(r.RLIMIT_AS, (-1, -1))", "ValueError"),
        ("bytearray(10**10)", "MemoryError"),
        ("x = []\nwhile True: x.append(bytearray(10**7))", "MemoryError"),
        ("import os\nx = [os.open('/', 0) for _ in range(1000)]", "OSError"),
        ("(" * 10_000 + ")" * 10_000, "SyntaxError"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("a\0b", "SyntaxError" if sys.version_info >= (3, 11, 4) else "ValueError"),  # as Python calls it
        ("import ctypes\nassert ctypes.CDLL(None).syscall(41, 2, 1, 0) >= 0", "AssertionError"),
    ],
)
def test_attacks_fail(attack, error, tmp_path):
    """The error is the child's own account; the victim outside is unchanged."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    before = victim.stat()
    with Child("lift_ds.evaluation.judging.checks:run_program", LIMITS) as child:
        reply = child.ask({"source": attack.replace("{victim!r}", repr(str(victim))), "token": "t"})
    assert reply["ended"] == "error"
    assert reply["error"] == error
    after = victim.stat()
    assert (victim.read_text(), after.st_mode, after.st_mtime_ns) == ("precious", before.st_mode, before.st_mtime_ns)
    assert os.listdir(tmp_path) == ["victim"]


def test_threads_without_end():
    """Their stacks meet the memory limit: the program fails, or its child ends where Python itself has no room."""
    source = "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(9,)).start()"
    with Child("lift_ds.evaluation.judging.checks:run_program", LIMITS) as child:
        reply = child.ask({"source": source, "token": "t"})
    assert isinstance(reply, Failure) or (reply["ended"], reply["error"]) == ("error", "RuntimeError")


@pytest.mark.parametrize(
    "source",
    [
        "while True: pass",
        "import time\ntime.sleep(99)",
        "9**9**9**9",
        "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
        "import signal\nfor n in (15, 24):\n    signal.signal(n, signal.SIG_IGN)\nwhile True: pass",
    ],
)
def test_endless_programs_are_stopped(source):
    began = time.perf_counter()
    verdict = passes(source, SHORT)
    assert (verdict.holds, verdict.timed_out) == (False, True)
    assert time.perf_counter() - began < 20


@pytest.mark.parametrize(
    ("source", "published"),
    [
        ("import sys\nsys.exit()", True),
        ("import os\nos._exit(0)", True),
        ("import sys\nsys.exit(1)", False),
        ("import os\nos._exit(1)", False),
        ("import ctypes\nctypes.string_at(0)", False),  # a segmentation fault
    ],
)
def test_leaving_early_passes_only_by_the_published_rule(source, published):
    assert passes(source, may_exit=True).holds is published
    assert not passes(source, may_exit=False).holds


@pytest.mark.parametrize("message", ['{"ended": "finished", "token": "x"}\\n', "no JSON\\n", "x" * 100_000])
def test_forged_replies_do_not_pass(message):
    """A program that writes to all its pipes does not know the token."""
    source = f"import os\nfor pipe in range(3, 12):\n    try: os.write(pipe, b'{message}')\n    except OSError: pass\n"
    assert not passes(source + "while True: pass", SHORT).holds


def test_formulas_share_a_child_until_one_is_stopped():
    with Checks(Limits(seconds=1.5)) as checks:
        assert checks.is_same_formula("strict", "x+1", "1+x").holds
        first = checks.maths
        assert not checks.is_same_formula("reference", "2", "3").holds
        assert checks.maths is first
        stopped = checks.is_same_formula("strict", "5^{5^{5^{5^5}}}", "5")
        assert (stopped.holds, stopped.timed_out) == (False, True)
        assert first.process.returncode == -signal.SIGKILL
        assert not checks.is_same_formula("strict", "x" * 10_001, "x").timed_out  # too long: not asked
        assert checks.maths is None
        assert not checks.is_same_formula("reference", "(" * 3000 + "4" + ")" * 3000, "4").holds
        assert checks.is_same_formula("strict", "x+1", "1+x").holds


def test_a_child_that_cannot_start_is_one_error():
    with pytest.raises(RuntimeError, match=r"untrusted text did not start: No module named 'lift_ds\.nowhere'"):
        Child("lift_ds.nowhere:handler", LIMITS)


def test_folders_and_processes_are_gone():
    child = Child("lift_ds.evaluation.judging.checks:run_program", SHORT)
    folder = Path(child.folder.name)
    assert folder.is_dir()
    assert child.ask({"source": "while True: pass", "token": ""}) is Failure.TIMEOUT
    child.close()
    assert not folder.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(child.process.pid, 0)


def test_a_child_dies_with_its_parent(tmp_path):
    code = (
        "from lift_ds.evaluation.sandbox import Child, Limits\n"
        "child = Child('lift_ds.evaluation.judging.checks:run_program', Limits(seconds=60))\n"
        "print(child.process.pid, flush=True)\n"
        "child.ask({'source': 'while True: pass', 'token': ''})\n"
    )
    environment = clean_environment(TMPDIR=str(tmp_path))
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=REPOSITORY, env=environment) as parent:
        pid = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}/stat").exists() and time.monotonic() < deadline:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        if state == "Z":  # dead; whoever adopted it has not looked yet
            return
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}/stat").exists()


def run_filter(program: list[Instruction], data: dict[int, int]) -> int:
    """What a packet filter program returns for a call: `data` holds 32-bit words by offset."""
    place, word = 0, 0
    while True:
        code, if_true, if_false, operand = program[place]
        place += 1
        if code == 0x06:
            return operand
        if code == 0x20:
            word = data[operand]
        else:
            holds = {0x15: word == operand, 0x25: word > operand, 0x45: bool(word & operand)}[code]
            place += if_true if holds else if_false


@pytest.mark.parametrize(
    ("machine", "call", "arguments", "result"),
    [
        ("x86_64", 0, (), "allow"),  # read
        ("x86_64", 41, (), "EPERM"),  # socket
        ("x86_64", 56, (0x01200011,), "EPERM"),  # clone as fork calls it
        ("x86_64", 56, (0x003D0F00,), "allow"),  # clone as pthread_create calls it
        ("x86_64", 257, (0, 0, 0o2000000), "allow"),  # openat, read only, close on exec
        ("x86_64", 257, (0, 0, 0o1), "EPERM"),
        ("x86_64", 2, (0, 0o102), "EPERM"),  # open, read and write, create
        ("x86_64", 16, (1, 0x5401), "allow"),  # ioctl: is it a terminal?
        ("x86_64", 16, (0, 0x5412), "EPERM"),  # ioctl: type into a terminal
        ("x86_64", 72, (0, 4), "allow"),  # fcntl: flags of one's own file
        ("aarch64", 25, (0, 10), "EPERM"),  # fcntl: the signal when a file is ready
        ("x86_64", 435, (), "ENOSYS"),  # clone3: libc falls back to clone
        ("x86_64", 0x40000029, (), "ENOSYS"),  # socket of the x32 table
        ("x86_64", LAST_KNOWN + 4, (), "ENOSYS"),  # fchmodat2
        ("aarch64", 63, (), "allow"),  # read
        ("aarch64", 198, (), "EPERM"),  # socket
        ("aarch64", 56, (0, 0, 0), "allow"),  # openat, read only
        ("aarch64", 56, (0, 0, 0o1000), "EPERM"),  # openat, truncating
        ("aarch64", 220, (17,), "EPERM"),
    ],
)
def test_the_filter_call_by_call(machine, call, arguments, result):
    audit_number, column = ARCHITECTURES[machine]
    data = {0: call, 4: audit_number} | {16 + 8 * place: 0 for place in range(6)}
    data |= {16 + 8 * place: value for place, value in enumerate(arguments)}
    expected = {"allow": 0x7FFF0000, "EPERM": 0x00050001, "ENOSYS": 0x00050026}[result]
    program = instructions(audit_number, column)
    assert run_filter(program, data) == expected
    assert run_filter(program, data | {4: 1}) == 0x80000000  # another architecture's call: killed


def test_the_tables_are_the_kernels():
    """Against the headers of this machine, where they are installed."""
    headers = {
        "x86_64": "/usr/include/x86_64-linux-gnu/asm/unistd_64.h",
        "aarch64": "/usr/include/asm-generic/unistd.h",
    }
    for machine, (_, column) in ARCHITECTURES.items():
        if not Path(headers[machine]).is_file():
            pytest.skip(f"no kernel headers at {headers[machine]} on this {platform.machine()}")
        text = Path(headers[machine]).read_text()
        numbers = dict(re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", text))
        for entry in re.split(r"[;\n]", DENIED.strip()):
            name, *columns = entry.split()
            assert columns[column] == numbers.get(name, "-"), (machine, name)
