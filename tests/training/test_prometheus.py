"""The text file for Prometheus, read by its own client library."""

import math

import pytest
from prometheus_client.parser import text_string_to_metric_families

from lift_ds.training.metrics import MetricsFile
from lift_ds.training.prometheus import METRICS, PrometheusFile
from tests.training.test_progress import make_totals

RUN = 'runs/a "b"\\c'


def step_record():
    """As the loop makes it of a step's totals."""
    numbers = {"grad_norm": 0.5, "lr": 1e-3, "seconds": 2.0, "tokens_per_second": 50.0, "mfu": None}
    return make_totals().record(True) | numbers | {"num_bad_steps": 1, "num_left_out_steps": 4}


def read(path):
    """Values by name and labels other than the run, which all have."""
    found = {}
    for family in text_string_to_metric_families(path.read_text()):
        assert family.documentation and family.type in ("gauge", "counter")
        for sample in family.samples:
            labels = dict(sample.labels)
            assert labels.pop("run") == RUN
            assert sample.name.endswith("_total") == (family.type == "counter")
            found[sample.name.removeprefix("lift_ds_"), *labels.values()] = sample.value
    return found


@pytest.fixture
def written(tmp_path):
    """A metrics file with the listener, where it writes, and what was said."""
    said = []
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    metrics.listeners.append(PrometheusFile(tmp_path / "prom" / "run.prom", RUN, said.append).take)
    (tmp_path / "prom").mkdir()
    yield metrics, tmp_path / "prom" / "run.prom", said
    metrics.close()


def test_every_kind_of_record(written):
    metrics, path, said = written
    metrics.write("heldout", 0, {"mean": 1.25})
    assert read(path) == {("heldout_loss",): 1.25}
    metrics.write("step", 7, step_record())
    metrics.write("solve", 7, {"solve_rate": 0.5})
    metrics.write("checkpoint", 7, {"path": "x", "seconds": 3.0, "stall_seconds": 0.5})
    metrics.write("end", 7, {"reason": "done"})
    found = read(path)
    expected = {
        ("steps_total",): 7, ("loss",): 1.5, ("part_seconds", "scoring"): 0.5, ("component_share", "easy"): 1 / 3,
        ("bad_steps_total",): 1, ("left_out_steps_total",): 4, ("skipped_rows",): 2, ("slowest_rank",): 0,
        ("peak_memory_bytes",): 12.34 * 2**30, ("solve_rate_ratio",): 0.5, ("checkpoint_seconds",): 3,
        ("checkpoint_stall_seconds",): 0.5,
        ("ended", "done"): 1, ("heldout_loss",): 1.25,
    }  # fmt: skip
    assert {key: found[key] for key in expected} == pytest.approx(expected)
    unknown = {"model_flops_utilization_ratio"}  # MFU, as on CPUs
    assert {name for name, *_ in found} == {each.name for each in METRICS} - unknown
    assert (said, [each.name for each in path.parent.iterdir()]) == ([], ["run.prom"])  # no temporary file is left


def test_a_loss_that_is_not_finite_is_not_the_last_one(written):
    """It is null in the metrics, and no number here."""
    metrics, path, _ = written
    metrics.write("step", 1, step_record())
    assert ("loss",) in read(path)
    metrics.write("step", 2, step_record() | {"loss": math.nan})
    assert ("loss",) not in read(path) and read(path)["steps_total",] == 2


def test_a_place_that_is_gone_is_said_once(written):
    metrics, path, said = written
    path.parent.rmdir()
    for step in (1, 2):
        metrics.write("heldout", step, {"mean": 1.0})
    assert said == [f"{path}: cannot be written: No such file or directory; Prometheus does not see this run"]
    path.parent.mkdir()
    metrics.write("heldout", 3, {"mean": 0.5})
    assert read(path) == {("heldout_loss",): 0.5}
