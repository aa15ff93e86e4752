"""Several hosts on one machine: network namespaces with a name, an address, an sshd and a mount table of their own.

They are joined by a bridge in a namespace of its own, so that nothing of the machine's network or firewall takes part,
and each calls its interface eth0. Root and CAP_SYS_ADMIN are needed. All of it goes away at the end: every process of a
host lives in its namespace, which is enough to find and end it.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conftest import REPOSITORY

PACKAGES = {
    "ip": "iproute2", "sshd": "openssh-server", "ssh": "openssh-client", "ssh-keygen": "openssh-client", "pdsh": "pdsh",
    "unshare": "util-linux",
}  # fmt: skip
PLACES = f"{os.environ['PATH']}:/usr/sbin:/sbin"  # where Debian keeps sshd and ip; not on every PATH
SSHD = """\
ListenAddress {address}:22
HostKey {work}/host_key
AuthorizedKeysFile {work}/user_key.pub
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM {pam}
StrictModes no
PidFile none
"""
SSH = """\
Host *
    IdentityFile {work}/user_key
    IdentitiesOnly yes
    IdentityAgent none
    UserKnownHostsFile {work}/known_hosts
    GlobalKnownHostsFile /dev/null
    StrictHostKeyChecking yes
    BatchMode yes
    LogLevel ERROR
"""


def why_not() -> str | None:
    """Why there can be no hosts here; `None` where there can."""
    missing = sorted({package for tool, package in PACKAGES.items() if shutil.which(tool, path=PLACES) is None})
    if missing:
        return f"needs: apt-get install {' '.join(missing)}"
    if os.geteuid() != 0:
        return "network namespaces need root"
    made = subprocess.run(["ip", "netns", "add", f"lift-ds-{os.getpid()}"], capture_output=True, env=environment())
    if made.returncode:
        return f"no network namespaces for this root: {made.stderr.decode().strip()}"
    subprocess.run(["ip", "netns", "delete", f"lift-ds-{os.getpid()}"], env=environment(), check=True)
    return None


def environment(**extra: str) -> dict[str, str]:
    """Of every process on a host."""
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{PLACES}",
        "PYTHONPATH": str(REPOSITORY),
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "GLOO_SOCKET_IFNAME": "eth0",
        **extra,
    }


@dataclass
class Hosts:
    """Hosts `node1`, `node2`, ... with the addresses 10.77.0.1, ...

    Args:
        work: A folder for keys and configurations.
        count: How many.
        private: A folder that is another one on every host but the first: a disk of its own.
    """

    work: Path
    count: int
    private: Path | None = None

    def __enter__(self) -> Hosts:
        self.names = [f"lift-ds-{os.getpid()}-{number}" for number in range(self.count)]
        self.switch = f"lift-ds-{os.getpid()}-switch"
        self.addresses = [f"10.77.0.{number + 1}" for number in range(self.count)]
        self.made_run_sshd = not Path("/run/sshd").is_dir()
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        known = [f"{address} node{number + 1}" for number, address in enumerate(self.addresses)]
        (self.work / "hosts").write_text("\n".join(["127.0.0.1 localhost", *known]) + "\n")
        self.join()
        self.start_sshds()
        return self

    def __exit__(self, *error: object) -> None:
        for number in range(self.count):
            self.kill(number)
        for name in (*self.names, self.switch):
            subprocess.run(["ip", "netns", "delete", name], env=environment(), check=False, capture_output=True)
        if self.made_run_sshd:
            Path("/run/sshd").rmdir()

    def join(self) -> None:
        """Makes the namespaces and wires them up."""
        self.ip("netns", "add", self.switch)
        self.ip("-n", self.switch, "link", "add", "bridge", "type", "bridge")
        self.ip("-n", self.switch, "link", "set", "bridge", "up")
        for number, (name, address) in enumerate(zip(self.names, self.addresses, strict=True)):
            self.ip("netns", "add", name)
            port = f"port{number}"
            self.ip("link", "add", "eth0", "netns", name, "type", "veth", "peer", "name", port, "netns", self.switch)
            self.ip("-n", self.switch, "link", "set", port, "master", "bridge")
            self.ip("-n", self.switch, "link", "set", port, "up")
            self.ip("-n", name, "address", "add", f"{address}/24", "dev", "eth0")
            self.ip("-n", name, "link", "set", "eth0", "up")
            self.ip("-n", name, "link", "set", "lo", "up")

    def start_sshds(self) -> None:
        """One on each host; its children have the host's name and mounts."""
        for key in ("host_key", "user_key"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.work / key)]
            subprocess.run(command, env=environment(), check=True)
        shadow = subprocess.run(["getent", "shadow", "root"], capture_output=True, text=True, check=False).stdout
        pam = "yes" if shadow.partition(":")[2].startswith("!") else "no"  # without PAM a locked account is turned away
        for number, address in enumerate(self.addresses):
            config = self.work / f"sshd_config_{number}"
            config.write_text(SSHD.format(address=address, work=self.work, pam=pam))
            sshd = shutil.which("sshd", path=PLACES)
            self.run(number, ["sh", "-c", f"{sshd} -f {config} -E {self.work}/sshd_{number}.log"], check=True)
        host_key = " ".join((self.work / "host_key.pub").read_text().split()[:2])
        (self.work / "known_hosts").write_text(f"10.77.0.* {host_key}\n")
        (self.work / "ssh_config").write_text(SSH.format(work=self.work))
        lines = [f"{name}={value}" for name, value in environment().items() if name in EXPORTED]
        (self.work / "deepspeed_env").write_text("\n".join(lines) + "\n")

    def ip(self, *words: str) -> None:
        """A command of iproute2."""
        subprocess.run(["ip", *words], env=environment(), check=True, capture_output=True)

    def on(self, number: int, command: Iterable[str]) -> list[str]:
        """A command as it is run on a host, with the host's name and its own disk."""
        mount = f"mount -t tmpfs none {self.private}; " if self.private is not None and number else ""
        names = f"mount --bind {self.work}/hosts /etc/hosts; "
        script = f'hostname node{number + 1}; {names}{mount}exec "$@"'
        inside = ["unshare", "--uts", "--mount", "sh", "-c", script, "sh", *command]
        return ["ip", "netns", "exec", self.names[number], *inside]

    def run(self, number: int, command: Iterable[str], **settings: Any) -> subprocess.CompletedProcess[str]:
        """Runs a command on a host to its end."""
        given = settings.pop("env", environment())
        return subprocess.run(self.on(number, command), env=given, cwd=REPOSITORY, text=True, **settings)

    def start(self, number: int, command: Iterable[str], printed: Path, **extra: str) -> subprocess.Popen[str]:
        """Starts a command on a host, which prints into a file."""
        ssh = {"DS_ENV_FILE": str(self.work / "deepspeed_env"), "PDSH_SSH_ARGS_APPEND": f"-F {self.work}/ssh_config"}
        with printed.open("w") as file:
            return subprocess.Popen(
                self.on(number, command), env=environment(**ssh, **extra), cwd=REPOSITORY, stdout=file, stderr=file,
                text=True, start_new_session=True,
            )  # fmt: skip

    def kill(self, number: int) -> None:
        """The host is gone: none of its processes is left."""
        found = subprocess.run(
            ["ip", "netns", "pids", self.names[number]], env=environment(), capture_output=True, text=True, check=False
        ).stdout
        for pid in map(int, found.split()):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def link(self, number: int, state: str) -> None:
        """Plugs a host's cable `down`, or `up` again; its interface keeps address and route."""
        self.ip("-n", self.switch, "link", "set", f"port{number}", state)

    def received(self, number: int) -> int:
        """Bytes that have come to a host."""
        command = ["cat", "/sys/class/net/eth0/statistics/rx_bytes"]
        found = subprocess.run(
            ["ip", "netns", "exec", self.names[number], *command], env=environment(), capture_output=True, check=True
        )
        return int(found.stdout)


EXPORTED = ("PATH", "DS_ACCELERATOR", "OMP_NUM_THREADS", "HF_HUB_OFFLINE", "GLOO_SOCKET_IFNAME")
"""What DeepSpeed's launcher has to be told to pass on; PYTHONPATH it does by itself."""
