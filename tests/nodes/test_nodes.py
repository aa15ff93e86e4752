"""Two and three hosts for real: launchers, fewer hosts after a resume, a host that dies, a cut cable, a disk apart."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import BASE, SMALL, latest, read_steps
from tests.nodes.hosts import PLACES, Hosts, why_not

pytestmark = [pytest.mark.slow, pytest.mark.distributed]
PORT = "29611"
RUN = [*SMALL, "--model", BASE, "eval.rows=0", "eval.solve_items=0", "optim.lr=1e-3"]
LIMIT = 240


@pytest.fixture(scope="module", autouse=True)
def machine():
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)


@pytest.fixture
def hosts(request, tmp_path):
    count = getattr(request, "param", 2)
    with Hosts(tmp_path, count) as made:
        yield made


def settings(output: Path, *more: str) -> list[str]:
    return ["launchers/train.py", *map(str, latest(*RUN, "--output", output, *more))]


def deepspeed(hosts: Hosts, numbers: list[int]) -> list[str]:
    """DeepSpeed's launcher with pdsh."""
    hostfile = hosts.work / "hostfile"
    hostfile.write_text("".join(f"{hosts.addresses[number]} slots=1\n" for number in numbers))
    first = hosts.addresses[numbers[0]]
    return ["deepspeed", "--hostfile", str(hostfile), "--no_ssh_check", "--master_addr", first, "--master_port", PORT]


def torchrun(hosts: Hosts, number: int, num_nodes: int) -> list[str]:
    command = [sys.executable, "-m", "torch.distributed.run", f"--nnodes={num_nodes}", f"--node-rank={number}"]
    return [*command, "--nproc-per-node=1", f"--master-addr={hosts.addresses[0]}", f"--master-port={PORT}"]


def start_torchrun(hosts: Hosts, output: Path, *more: str) -> list[subprocess.Popen]:
    """One a host."""
    return [
        hosts.start(number, [*torchrun(hosts, number, hosts.count), *settings(output, *more)], log(hosts, number))
        for number in range(hosts.count)
    ]


def log(hosts: Hosts, number: int) -> Path:
    return hosts.work / f"printed-{number}.txt"


def ended(process: subprocess.Popen, printed: Path, limit: float = LIMIT) -> str:
    """What it printed, once it has ended well."""
    status = process.wait(timeout=limit)
    assert status == 0, printed.read_text()[-6000:]
    return printed.read_text()


def await_step(output: Path, step: int, *processes: subprocess.Popen) -> None:
    deadline = time.monotonic() + LIMIT
    while not (output / "metrics.jsonl").is_file() or len(read_steps(output)) < step:
        assert all(process.poll() is None for process in processes) and time.monotonic() < deadline
        time.sleep(0.05)


def losses(output: Path) -> dict[int, float]:
    return {step["step"]: step["loss"] for step in read_steps(output)}


@pytest.mark.parametrize("hosts", [3], indirect=True)
def test_three_hosts_then_one(hosts, tmp_path):
    """pdsh over three hosts, then over one of them: the run goes on with the same batches."""
    output, straight = tmp_path / "run", tmp_path / "straight"
    printed = log(hosts, 0)
    more = ("optim.steps=4", "checkpoint.save_every=2", "runtime.nodes=3")
    said = ended(hosts.start(0, [*deepspeed(hosts, [0, 1, 2]), *settings(output, *more)], printed), printed)
    assert "3 ranks on 3 machines" in said and "3 ranks, ZeRO-3" in said
    assert hosts.received(1) > 1 << 20 and hosts.received(2) > 1 << 20  # gradients crossed the wire
    more = ("optim.steps=6", "--resume", "auto", "runtime.nodes=1")
    said = ended(hosts.start(0, [*deepspeed(hosts, [0]), *settings(output, *more)], printed), printed)
    assert f"resumed from {output}/checkpoints/step-000004 at step 4" in said
    ended(hosts.start(0, [*deepspeed(hosts, [0]), *settings(straight, "optim.steps=6")], printed), printed)
    expected = losses(straight)
    assert losses(output) == {step: pytest.approx(expected[step], abs=2e-6) for step in range(1, 7)}


def test_mpirun(hosts, tmp_path):
    """OpenMPI over two hosts, with ssh."""
    if subprocess.run(["which", "mpirun"], env={"PATH": PLACES}, capture_output=True).returncode:
        pytest.skip("needs: apt-get install openmpi-bin")
    output, printed = tmp_path / "run", log(hosts, 0)
    command = ["mpirun", "--allow-run-as-root", "-np", "2", "--host", ",".join(f"{each}:1" for each in hosts.addresses)]
    command += ["--mca", "plm_rsh_agent", f"ssh -F {hosts.work}/ssh_config", "--mca", "btl_tcp_if_include", "eth0"]
    command += ["--mca", "oob_tcp_if_include", "eth0"]
    for name in ("PATH", "PYTHONPATH", "DS_ACCELERATOR", "OMP_NUM_THREADS", "GLOO_SOCKET_IFNAME", "HF_HUB_OFFLINE"):
        command += ["-x", name]
    said = ended(hosts.start(0, [*command, sys.executable, *settings(output, "optim.steps=3")], printed), printed)
    assert "2 ranks on 2 machines" in said and list(losses(output)) == [1, 2, 3]


def test_a_host_that_dies(hosts, tmp_path):
    """Mid-step, its cable with it: the other host ends, and names it; the run goes on there alone."""
    output = tmp_path / "run"
    more = ("optim.steps=100000", "checkpoint.save_every=2", "runtime.timeout=0.1")
    processes = start_torchrun(hosts, output, *more)
    await_step(output, 5, *processes)
    hosts.link(1, "down")
    hosts.kill(1)
    since = time.monotonic()
    assert processes[0].wait(timeout=90) != 0
    assert time.monotonic() - since < 60
    said = log(hosts, 0).read_text()
    assert "is stuck: step " in said and "rank 1 on node2: " in said and "NO SIGN OF LIFE" in said
    newest = int((output / "checkpoints" / "latest").read_text()[5:])
    printed = log(hosts, 1)
    more = ("--resume", "auto", f"optim.steps={newest + 2}")
    said = ended(hosts.start(0, [*torchrun(hosts, 0, 1), *settings(output, *more)], printed), printed)
    assert f"at step {newest}" in said and max(losses(output)) == newest + 2


def test_a_cable_that_is_out_for_twenty_seconds(hosts, tmp_path):
    """Nothing is lost: the same losses as without."""
    output, straight = tmp_path / "run", tmp_path / "straight"
    processes = start_torchrun(hosts, straight, "optim.steps=60")
    for number, process in enumerate(processes):
        ended(process, log(hosts, number))
    processes = start_torchrun(hosts, output, "optim.steps=60")
    await_step(output, 5, *processes)
    hosts.link(1, "down")
    time.sleep(2)
    before = len(read_steps(output))
    time.sleep(18)
    assert len(read_steps(output)) <= before + 1 < 60  # it stands still
    hosts.link(1, "up")
    for number, process in enumerate(processes):
        ended(process, log(hosts, number))
    assert losses(output) == losses(straight)


def test_a_run_folder_on_a_disk_of_its_own(tmp_path):
    """Refused before training, by name."""
    private = tmp_path / "private"
    private.mkdir()
    with Hosts(tmp_path, 2, private) as hosts:
        processes = start_torchrun(hosts, private / "run", "optim.steps=3")
        assert [process.wait(timeout=LIMIT) for process in processes] != [0, 0]
        said = "".join(log(hosts, number).read_text() for number in range(2))
    assert f"output={private}/run: what rank 0 writes there is not seen by rank 1 on node2" in said
    assert not list(private.glob("run/checkpoints/*"))


def test_hosts_with_other_code(hosts, tmp_path):
    """The second one has a changed copy of the package: said before training."""
    copied = tmp_path / "other"
    subprocess.run(["cp", "-r", "lift_ds", str(copied)], check=True)
    (tmp_path / "elsewhere").mkdir()
    copied.rename(tmp_path / "elsewhere" / "lift_ds")
    changed = tmp_path / "elsewhere" / "lift_ds" / "rng.py"
    changed.write_text(changed.read_text() + "\n# changed\n")
    output = tmp_path / "run"
    first = hosts.start(0, [*torchrun(hosts, 0, 2), *settings(output)], log(hosts, 0))
    second = hosts.start(
        1, [*torchrun(hosts, 1, 2), *settings(output)], log(hosts, 1), PYTHONPATH=str(tmp_path / "elsewhere")
    )
    assert [process.wait(timeout=LIMIT) for process in (first, second)] != [0, 0]
    said = log(hosts, 0).read_text()
    assert "another lift_ds on node2: " in said
    assert not (output / "metrics.jsonl").exists()  # no step was taken
