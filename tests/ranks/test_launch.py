"""What the environment says of this process, and what it must not say."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from lift_ds.ranks.launch import NEEDED, Launch, read_launch
from lift_ds.ranks.schedulers import first_node, tasks_of_nodes
from tests.conftest import SMALL, clean_environment, free_port, latest, run

WHOLE = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
SRUN = {  # the last of five tasks, in srun's documented variables
    "SLURM_STEP_NUM_TASKS": "5", "SLURM_PROCID": "4", "SLURM_LOCALID": "1", "SLURM_NODEID": "1",
    "SLURM_JOB_ID": "812345", "SLURM_STEP_ID": "1", "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_STEP_TASKS_PER_NODE": "3,2",
}  # fmt: skip
STARTS = "start with `deepspeed --num_gpus 2 SCRIPT ...` or `torchrun --nproc_per_node 2 SCRIPT ...`"


@pytest.fixture
def given(monkeypatch):
    """Sets exactly these variables of launchers."""
    for name in list(os.environ):
        if name.startswith(
            ("RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "SLURM_", "OMPI_", "PMI_", "MPI_", "TORCHELASTIC")
        ):
            monkeypatch.delenv(name)

    def give(values):
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return give


def test_a_whole_set(given):
    given(WHOLE)
    assert read_launch() == Launch(rank=1, world_size=2, local_rank=1, local_world_size=2)
    given({"LOCAL_SIZE": "2", "WORLD_SIZE": "4", "RANK": "3"})
    assert read_launch() == Launch(rank=3, world_size=4, local_rank=1, local_world_size=2)


def test_nothing_is_one_process(given):
    given({"MASTER_ADDR": "", "SLURM_STEP_NUM_TASKS": "1"})
    assert read_launch() == Launch(0, 1, 0, 1)
    assert read_launch() == Launch(0, 1, 0, 1)  # its own variables are a whole set


def test_srun_alone(given):
    """Without torchrun and without a library of MPI; the port follows from job and step."""
    given(SRUN)
    assert read_launch() == Launch(rank=4, world_size=5, local_rank=1, local_world_size=2)
    assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == ("gpu07", str(20000 + (812345 + 97) % 10000))
    assert read_launch() == Launch(4, 5, 1, 2)  # what it has set is a whole set


def test_a_place_to_meet_that_is_given(given):
    given(SRUN | {"MASTER_ADDR": "10.0.0.7", "MASTER_PORT": "29511"})
    assert read_launch() == Launch(4, 5, 1, 2)
    assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == ("10.0.0.7", "29511")


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("node1", "node1"), ("a1,b2", "a1"), ("gpu[07-09,12],login", "gpu07"), ("r[1,3]-ib0", "r1-ib0"), ("", "")],
)
def test_the_first_machine_of_a_list(nodes, first):
    assert first_node(nodes) == first


def test_tasks_of_machines():
    assert tasks_of_nodes("2(x3),1") == [2, 2, 2, 1] and tasks_of_nodes("8") == [8]


@pytest.mark.parametrize(
    "values",
    [
        {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
        | {"OMPI_COMM_WORLD_LOCAL_SIZE": "2"},
        {"PMI_SIZE": "4", "PMI_RANK": "3", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"},
    ],
    ids=["OpenMPI", "MPICH"],
)
def test_mpirun_without_its_library(given, monkeypatch, values):
    """On one machine the ranks meet by themselves; on several, where they are told to."""
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    given(values)
    with pytest.raises(RuntimeError, match="mpi4py cannot load MPI.* set MASTER_ADDR and MASTER_PORT to where the"):
        read_launch()
    given({name: "4" for name in values if name in ("OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS")})
    assert read_launch() == Launch(rank=3, world_size=4, local_rank=1, local_world_size=4)
    assert os.environ["MASTER_ADDR"] == "127.0.0.1"
    assert os.environ["MASTER_PORT"] == str(20000 + os.getppid() % 10000)


@pytest.mark.distributed
def test_two_tasks_of_srun_train(tiny_dir, tmp_path):
    """Started as srun starts them: with its variables, and nothing else."""
    command = [sys.executable, "launchers/train.py", *latest(*SMALL, "--model", tiny_dir, "--output", tmp_path / "run")]
    of_both = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "localhost", "SLURM_STEP_TASKS_PER_NODE": "2"}
    of_both |= {"SLURM_NODEID": "0", "SLURM_JOB_ID": str(free_port()), "SLURM_STEP_ID": "0"}
    with ThreadPoolExecutor(2) as pool:
        tasks = [clean_environment(**of_both, SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank)) for rank in range(2)]
        done = list(pool.map(lambda environment: run(command, env=environment), tasks))
    assert "2 ranks, ZeRO-3" in done[0].stdout and "2 ranks" not in done[1].stdout


@pytest.mark.parametrize("name", NEEDED)
def test_half_set(given, name):
    """Each alone, and each missing: what is set, what is not, how to start."""
    given({name: WHOLE[name]})
    others = [other for other in NEEDED if other != name]
    with pytest.raises(RuntimeError) as caught:
        read_launch()
    assert str(caught.value).startswith(
        f"{name}={WHOLE[name]} in the environment, but not {', '.join(others)}: {STARTS}"
    )
    assert str(caught.value).endswith(f"for one process: unset {name}")
    given(WHOLE | {name: ""})
    with pytest.raises(RuntimeError, match=rf"in the environment, but not {name}: .*unset {' '.join(others)}$"):
        read_launch()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (WHOLE | {"RANK": "2"}, "RANK=2: a whole number from 0 to 1 is needed with WORLD_SIZE=2; start"),
        (WHOLE | {"RANK": "-1"}, "RANK=-1: a whole number from 0 to 1"),
        (WHOLE | {"RANK": "one"}, "RANK=one: a whole number from 0 to 1"),
        (WHOLE | {"WORLD_SIZE": "2.0"}, "WORLD_SIZE=2.0: a whole number from 1 is needed; start"),
        (WHOLE | {"WORLD_SIZE": "0"}, "WORLD_SIZE=0: a whole number from 1"),
        (WHOLE | {"WORLD_SIZE": "²"}, "WORLD_SIZE=²: a whole number from 1"),
        (WHOLE | {"LOCAL_RANK": "x"}, "LOCAL_RANK=x: a whole number from 0 to 1"),
        (
            WHOLE | {"LOCAL_WORLD_SIZE": "1"},
            "LOCAL_RANK=1: a whole number from 0 to 0 is needed with 1 processes on this",
        ),
        (WHOLE | {"LOCAL_WORLD_SIZE": "all"}, "LOCAL_WORLD_SIZE=all: a whole number from 1"),
        (WHOLE | {"MASTER_PORT": "70000"}, "MASTER_PORT=70000: a whole number from 1 to 65535"),
        (WHOLE | {"MASTER_PORT": "http"}, "MASTER_PORT=http: a whole number from 1 to 65535"),
        (WHOLE | {"DEEPSPEED_TIMEOUT": "10 min"}, "DEEPSPEED_TIMEOUT=10 min: a whole number from 1 is needed"),
        (
            {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0"},
            "several srun tasks (SLURM_STEP_NUM_TASKS=2), but not SLURM_LOCALID, SLURM_NODEID, SLURM_STEP_NODELIST, "
            "SLURM_STEP_TASKS_PER_NODE in the environment: start with srun",
        ),
        (SRUN | {"SLURM_STEP_NUM_TASKS": "4"}, "SLURM_STEP_NUM_TASKS=4, but SLURM_PROCID=4, SLURM_LOCALID=1, "),
        (SRUN | {"MASTER_PORT": "http", "MASTER_ADDR": ""}, "MASTER_PORT=http: a whole number from 1 to 65535"),
        (SRUN | {"SLURM_NODEID": "7"}, "SLURM_STEP_NUM_TASKS=5, but SLURM_PROCID=4, "),
        (SRUN | {"SLURM_LOCALID": "3"}, "SLURM_STEP_NUM_TASKS=5, but SLURM_PROCID=4, "),
        (SRUN | {"SLURM_STEP_TASKS_PER_NODE": "many"}, "SLURM_STEP_NUM_TASKS=5, but SLURM_PROCID=4, "),
        ({"SLURM_STEP_NUM_TASKS": "two"}, "SLURM_STEP_NUM_TASKS=two: a whole number from 1"),
        (
            {"OMPI_COMM_WORLD_SIZE": "2"},
            "OMPI_COMM_WORLD_SIZE=2 in the environment, but not OMPI_COMM_WORLD_RANK: start",
        ),
        ({"PMI_SIZE": "two", "PMI_RANK": "0"}, "PMI_SIZE=two: a whole number from 1"),
        ({"PMI_SIZE": "2", "PMI_RANK": "2"}, "PMI_RANK=2: a whole number from 0 to 1 is needed with PMI_SIZE=2"),
        ({"PMI_SIZE": "2", "PMI_RANK": "0", "WORLD_SIZE": "2"}, "WORLD_SIZE=2 in the environment, but not RANK"),
        (
            {name: str(value) for name, value in zip(NEEDED, (0, 1, 0, "localhost", 29500), strict=True)}
            | {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"},
            "WORLD_SIZE=1, but OMPI_COMM_WORLD_SIZE=2: unset RANK WORLD_SIZE",
        ),
    ],
)
def test_what_cannot_be(given, values, message):
    given(values)
    with pytest.raises(RuntimeError) as caught:
        read_launch()
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
