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


@pytest.mark.slow
def test_quick_gpu_run(tmp_path):
    """All parts small on the CPU; a second call has nothing left to do."""
    command = [sys.executable, "benchmarks/gpu/run.py", "--quick", "--device", "cpu", "--out", str(tmp_path)]
    run(command, timeout=900)
    figures = json.loads((tmp_path / "gpu.json").read_text())
    assert figures["quick"] is True and figures["nan_gradients"] == 0.0
    assert figures["resume/resume_loss_difference"] == 0.0 and figures["stages/zero3_loss_difference"] == 0.0
    page = (tmp_path / "gpu.md").read_text()
    assert "nothing here may be quoted" in page and "too much" not in page and "What failed" not in page
    assert len(list(tmp_path.iterdir())) <= 6
    assert run(command, timeout=60).stdout.strip() == ""
