"""What the environment says of this process, and what it must not say."""

import os

import pytest

from lift_ds.ranks.launch import NEEDED, Launch, read_launch

WHOLE = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
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
        ({"SLURM_STEP_NUM_TASKS": "2"}, "several srun tasks without torchrun: launchers/train.slurm"),
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
