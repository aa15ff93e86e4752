"""What ranks send each other besides weights and gradients grows as the formulas of `benchmarks/growth.py` say."""

import importlib.util

import pytest

from tests.conftest import REPOSITORY


@pytest.fixture(scope="module")
def growth():
    spec = importlib.util.spec_from_file_location("growth", REPOSITORY / "benchmarks" / "growth.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.distributed
@pytest.mark.parametrize("num_ranks", [pytest.param(count, marks=pytest.mark.slow) for count in (1, 2, 4)])
def test_the_formula_gives_the_counted_bytes(growth, num_ranks, tmp_path):
    """Of every rank; and what a rank hashes and opens at a resume is its own, of ranks that are as many."""
    model = growth.write_model(tmp_path / "model", 2)
    found = growth.measure(num_ranks, model, tmp_path)  # compares all calls of the steps with the formula
    assert found["step_control_bytes"] == 776 + (16 if num_ranks > 1 else 0)
    assert found["step_dealing_bytes"] == (96 * num_ranks if num_ranks > 1 else 0)  # 24 a document, 4 a rank
    assert found["resume_opened"] <= 12
    share = found["checkpoint_bytes_per_rank"]
    assert found["resume_hashed_bytes"] < share + 20_000  # and the manifest itself
    assert found["save_hashed_bytes"] < share + 120_000  # rank 0 has tokenizer and config
    assert found["checkpoint_files"] == 12 + 4 * num_ranks
