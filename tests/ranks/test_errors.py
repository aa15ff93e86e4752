"""Which errors are one line, and which are said with their traceback."""

import dataclasses
import json

import pytest
import torch

from lift_ds.cli.tool import tool
from lift_ds.config.loading import ConfigError
from lift_ds.method.components import lift3_component
from lift_ds.method.difficulty import Observations
from lift_ds.ranks.control import control_group
from lift_ds.ranks.errors import frames_of, is_explained, is_of_collective, package_of
from lift_ds.ranks.launch import number_in, read_launch
from lift_ds.ranks.shares import Alone, equal_share
from lift_ds.storage.manifest import FileRecord, hash_file, step_of


def half_a_launch(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    read_launch()


def no_time(monkeypatch):
    monkeypatch.setenv("DEEPSPEED_TIMEOUT", "never")
    number_in("DEEPSPEED_TIMEOUT", 1)


def config(_):
    raise ConfigError(["optim.lr=-1: above 0"])


@pytest.mark.parametrize(
    "action",
    [
        config,
        half_a_launch,
        no_time,
        lambda _: equal_share([], Alone()),
        lambda _: hash_file("/nowhere"),  # an OSError out of C
        lambda _: json.loads("{"),  # a ValueError of another package
    ],
)
def test_settings_data_and_surroundings_are_explained(action, monkeypatch):
    with pytest.raises((ValueError, RuntimeError, OSError)) as caught:
        action(monkeypatch)
    assert is_explained(caught.value)


@pytest.mark.parametrize(
    ("action", "kind"),
    [
        (lambda: torch.ones(2) @ torch.ones(3), RuntimeError),  # out of C, as CUDA's and NCCL's are
        (lambda: lift3_component("half"), TypeError),
        (lambda: step_of(hash_file.__globals__["Path"]("step-x")), ValueError),  # int("x") in this package
        (lambda: torch.nn.Linear(2, 2).load_state_dict({}), RuntimeError),  # a `raise` of torch's
        (lambda: torch.optim.AdamW([]), ValueError),
        (lambda: FileRecord(1), TypeError),
        (lambda: dataclasses.replace(FileRecord(1, ""), size=2), TypeError),
        (lambda: equal_share(range(3), None), AttributeError),
    ],
)
def test_anything_else_is_a_fault(action, kind):
    with pytest.raises(kind) as caught:
        action()
    assert not is_explained(caught.value)
    assert not is_of_collective(caught.value)


def test_a_call_into_c_from_this_package_is_a_fault():
    """Its last frame is this package's, but no `raise` stands there."""
    with pytest.raises(RuntimeError) as caught:
        Observations.of(torch.arange(3), torch.rand(2), torch.rand(2))  # 3 tokens, 2 levels
    assert package_of(frames_of(caught.value)[-1]) == "lift_ds"
    assert not is_explained(caught.value)


def test_errors_of_collectives_are_known():
    with pytest.raises((ValueError, RuntimeError)) as caught:
        torch.distributed.barrier()
    assert is_of_collective(caught.value)
    with pytest.raises(AssertionError) as caught:
        control_group()
    assert not is_explained(caught.value)


def test_tools_on_one_process_do_the_same(capsys):
    """A line and status 2 for what is explained; the traceback is Python's own for the rest."""

    @tool("A tool.")
    def explained(arguments):
        equal_share([], Alone())

    @tool("A tool.")
    def fault(arguments):
        torch.ones(2) @ torch.ones(3)

    with pytest.raises(SystemExit) as ended:
        explained([])
    assert (ended.value.code, capsys.readouterr().err) == (2, "error: nothing to evaluate: no items.\n")
    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        fault([])
