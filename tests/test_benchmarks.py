"""Every benchmark's smoke test: it runs, and writes flat figures that say they are not to be quoted."""

import json
import sys

import pytest

from tests.conftest import free_port, run

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port"]
COMMANDS = {
    "buffers": TORCHRUN,
    "compile": [sys.executable],
    "controls": [sys.executable],
    "conversion": [sys.executable],
    "data": [sys.executable],
    "loading": [sys.executable],
    "large_model": [sys.executable],
    "loss_memory": [sys.executable],
    "sampling": [sys.executable],
    "step_cost": TORCHRUN,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(COMMANDS))
def test_quick(name, tmp_path):
    command, figures = list(COMMANDS[name]), tmp_path / "figures.json"
    if command == TORCHRUN:
        command.append(str(free_port()))
    run([*command, f"benchmarks/{name}.py", "--quick", "--json", str(figures)], timeout=900)
    found = json.loads(figures.read_text())
    assert found.pop("quick") is True
    assert len(found) > 3 and all(isinstance(value, (int, float)) for value in found.values())
