"""Slurm on hosts of `hosts.py`: munged for all, slurmctld on the first, slurmd on each; partitions `low` and `high`.

A job in `low` that one in `high` needs the place of gets SIGTERM, and `GRACE` seconds later ends and goes back into the
queue. GPUs are counted and stand for nothing.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.nodes.hosts import PLACES, Hosts, environment

PACKAGES = {"slurmctld": "slurm-wlm", "slurmd": "slurm-wlm", "sbatch": "slurm-client", "munged": "munge"}
GRACE = 60
CONFIGURATION = """\
ClusterName=lift-ds
SlurmctldHost=node1
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={work}/munge.socket
CredType=cred/munge
StateSaveLocation={work}/state
SlurmdSpoolDir={work}/spool-%n
SlurmctldPidFile={work}/slurmctld.pid
SlurmdPidFile={work}/slurmd-%n.pid
SlurmctldLogFile={work}/slurmctld.log
SlurmdLogFile={work}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
ReturnToService=2
SlurmdParameters=config_overrides
MailProg=/bin/true
KillWait=30
GresTypes=gpu
{nodes}
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 GraceTime={grace}
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF
"""


def why_not() -> str | None:
    """Why there can be no Slurm here; `None` where there can."""
    missing = sorted({package for tool, package in PACKAGES.items() if shutil.which(tool, path=PLACES) is None})
    return f"needs: apt-get install {' '.join(missing)}" if missing else None


@dataclass
class Slurm:
    """A cluster of all hosts, for as long as they are there."""

    hosts: Hosts
    variables: dict[str, str] = field(default_factory=dict)

    def __enter__(self) -> Slurm:
        hosts, work = self.hosts, self.hosts.work
        (work / "state").mkdir()
        lines = [
            f"NodeName=node{number + 1} NodeAddr={address} CPUs=1 Gres=gpu:1 State=UNKNOWN"
            for number, address in enumerate(hosts.addresses)
        ]
        (work / "slurm.conf").write_text(CONFIGURATION.format(work=work, nodes="\n".join(lines), grace=GRACE))
        (work / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")  # which is then not asked for anything
        (work / "gres.conf").write_text("AutoDetect=off\nName=gpu File=/dev/null\n")
        key = work / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        self.variables = {"SLURM_CONF": str(work / "slurm.conf")}
        paths = {"key-file": key, "socket": work / "munge.socket", "pid-file": work / "munge.pid"}
        paths |= {"log-file": work / "munge.log", "seed-file": work / "munge.seed"}
        self.on(0, "munged", "--force", *(f"--{name}={path}" for name, path in paths.items()))
        self.on(0, "slurmctld")
        for number in range(hosts.count):
            (work / f"spool-node{number + 1}").mkdir()
            self.on(number, "slurmd")
        self.wait_for(lambda: self.states() == {"idle"}, 60, "idle nodes")
        return self

    def __exit__(self, *error: object) -> None:
        """Its processes end with the hosts'."""

    def on(self, number: int, *command: str | Path) -> str:
        """What a command of Slurm prints on a host."""
        words = [str(word) for word in command]
        given = environment(**self.variables)
        with (self.hosts.work / "commands.log").open("a") as printed:
            done = self.hosts.run(number, words, env=given, stdout=-1, stderr=printed, check=True)
        return str(done.stdout)

    def states(self) -> set[str]:
        """What the nodes are doing."""
        return set(self.on(0, "sinfo", "-h", "-o", "%T").split())

    def submit(self, *command: str | Path) -> str:
        """A job's number."""
        return self.on(0, "sbatch", "--parsable", *command).strip()

    def job(self, number: str) -> dict[str, str]:
        """What Slurm knows of a job."""
        return dict(re.findall(r"(\w+)=(\S*)", self.on(0, "scontrol", "show", "job", number)))

    def wait_for(self, holds: Callable[[], bool], seconds: float, what: str) -> None:
        """Waits until something holds."""
        deadline = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s"
            time.sleep(0.2)
