"""Every benchmark's smoke test: it runs, and writes flat figures that say they are not to be quoted."""

import importlib.util
import json
import sys

import pytest

from tests.conftest import REPOSITORY, free_port, run

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port"]
COMMANDS = {
    "baseline": [sys.executable],
    "block_models": [sys.executable],
    "buffers": TORCHRUN,
    "compile": [sys.executable],
    "controls": [sys.executable],
    "conversion": [sys.executable],
    "data": [sys.executable],
    "loading": [sys.executable],
    "elementwise": [sys.executable],
    "goodput": [sys.executable],
    "growth": [sys.executable],
    "large_model": [sys.executable],
    "loss_memory": [sys.executable],
    "memory": [sys.executable],
    "micro_batches": [sys.executable],
    "sampling": [sys.executable],
    "saving": [sys.executable],
    "planned_memory": [sys.executable],
    "quality/quality": [sys.executable],
    "step_cost": TORCHRUN,
    "step_weights": [sys.executable],
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


def load_page():
    spec = importlib.util.spec_from_file_location("gpu_page", REPOSITORY / "benchmarks" / "gpu" / "page.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_gpu_page_is_made_of_its_figures():
    page = load_page()
    assert (page.RESULTS / "gpu.md").read_text() == page.published(), "python benchmarks/gpu/page.py makes it anew"


def test_a_gpu_page():
    page = load_page()
    machine = {"device": "NVIDIA X", "torch": "2.11.0", "commit": "abcdef0", "quick": False, "date": "2026-11-26"}
    speeds = {"vanilla_tokens_per_second": 9000.0, "vanilla_mfu": 0.35, "vanilla_peak_gib": 61.0}
    speeds |= {"exact_tokens_per_second": 7200.0, "exact_over_vanilla": 1.25, "table_mfu": float("nan")}
    found = {
        "gradients": {"figures": {"nan_gradients": 2.0, "gradient_packed_float32": 3e-6}, "notes": []},
        "far_scores": {"figures": {"far_scores_nan": 1.0}, "notes": []},
        "lora_8b": {"figures": speeds, "notes": ["attention: varlen"]},
        "kernels": {"figures": {}, "notes": ["40.0%  gemm"]},
        "short": {"failed": "not done within 100 s", "output": ""},
    }
    figures = page.flat(machine, found)
    assert figures["nan_gradients"] == 3.0 and figures["vanilla_mfu"] == 0.35 and figures["exact_over_vanilla"] == 1.25
    assert figures["lora_8b/table_mfu"] is None and figures["short_over_long"] is None
    shown = page.render(json.loads(json.dumps(figures)))
    assert "| gradients that are no numbers | 2 **too much** | 0 |" in shown
    assert "| the same, packed | 3e-06 | 1e-05 |" in shown
    assert "| exact | 7,200 | not measured | 1.25 |" in shown  # 9,000 / 7,200
    assert "    40.0%  gemm" in shown and "- `short`: not done within 100 s" in shown


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


def load_compared():
    path = REPOSITORY / "benchmarks" / "quality" / "compared.py"
    spec = importlib.util.spec_from_file_location("compared", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["compared"] = module
    spec.loader.exec_module(module)
    return module


def test_holms_correction():
    """By hand: .01 x 4, .02 x 3, .03 x 2 and .04, none below the one before."""
    holm = load_compared().holm
    found = holm({"c": 0.03, "a": 0.01, "d": 0.04, "b": 0.02})
    assert list(found) == ["c", "a", "d", "b"]
    assert found == pytest.approx({"a": 0.04, "b": 0.06, "c": 0.06, "d": 0.06})
    assert holm({"a": 0.5, "b": 0.9}) == {"a": 1.0, "b": 1.0}


def test_intervals_over_seeds_and_items():
    """Two seeds that contradict each other are no difference; 30 points of every seed and many items are one."""
    compared = load_compared()
    first = compared.solved_of(["0" * 100, "0" * 100])
    apart = compared.bootstrap(first, compared.solved_of(["1" * 40 + "0" * 60, "0" * 100]), 2000, 0.95)
    assert apart.mean == pytest.approx(0.2) and apart.low == 0 and apart.high > 0.4 and apart.p > 0.4
    alike = compared.bootstrap(first, compared.solved_of(["10" * 30 + "0" * 40] * 2), 2000, 0.95)
    assert alike.mean == pytest.approx(0.3) and 0.2 < alike.low < 0.25 and 0.35 < alike.high < 0.4
    assert alike.p == pytest.approx(2 / 2000)
