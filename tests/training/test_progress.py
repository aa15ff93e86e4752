import io
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from lift_ds.ranks.shares import Alone
from lift_ds.storage.run_folder import read_metrics
from lift_ds.training.bars import sparkline
from lift_ds.training.metrics import MetricsFile, StepTotals
from lift_ds.training.progress import LiveProgress, PlainProgress
from lift_ds.training.summary import print_summary
from lift_ds.training.timing import PARTS

SECONDS = dict.fromkeys(PARTS, 0.0) | {"data": 0.004, "scoring": 0.5, "forward": 0.196, "backward": 0.3}


def make_totals():
    totals = StepTotals()
    totals.add(loss=1.5)
    totals.add(num_documents=3, num_tokens=100, num_skipped=2)
    totals.add(num_in_common=6, num_compared=8, num_by_chance=3)
    totals.add_rank(SECONDS, 0.0, (12.34, 0.0), Alone())
    totals.add_weights(torch.tensor([12.0, 30.0, 4.0]))
    totals.add_spans(
        t=torch.tensor([0.05, 0.55, 0.95]),
        component=torch.tensor([2, 1, 0]),
        nll_sum=torch.tensor([2.0, 6.0, 8.0]),
        num_kept=torch.tensor([1, 3, 8]),
        gradient_norm=torch.tensor([0.5, 0.25, 0.125]),
    )
    return totals


def test_a_step_record():
    record = make_totals().record(time_scaling=True)
    assert record["loss"] == 1.5
    assert (record["num_tokens"], record["num_documents"], record["num_skipped"]) == (100, 3, 2)
    assert record["component_share"] == pytest.approx({"easy": 1 / 3, "random": 1 / 3, "hard": 1 / 3})
    assert record["component_token_nll"] == {"easy": 1.0, "random": 2.0, "hard": 2.0}  # 8/8, 6/3, 2/1
    assert record["t_documents"] == [1, 0, 0, 0, 0, 1, 0, 0, 0, 1]
    assert record["t_token_nll"][0::5][:2] == [2.0, 2.0]  # 2/1 and 6/3
    assert record["t_token_nll"][1] is None
    assert record["t_gradient_norm"][9] == 0.125
    assert record["max_inverse_t"] == pytest.approx(20)
    assert record["t_max_inverse_t"][9] == pytest.approx(1 / 0.95)
    assert (record["scoring_agreement"], record["scoring_chance"]) == (0.75, 0.375)
    assert record["scoring_seconds"] == 0.5
    assert record["effective_num_learned"] == pytest.approx(144 / 30)
    assert record["largest_weight_share"] == pytest.approx(4 / 12)


def test_a_step_that_compares_nothing():
    record = StepTotals().record(time_scaling=True)
    assert (record["scoring_agreement"], record["scoring_chance"]) == (None, None)
    assert (record["effective_num_learned"], record["largest_weight_share"]) == (None, None)


def test_sums_over_ranks():
    one, other = make_totals(), make_totals()
    other.add(num_tokens=200)
    for totals in (one, other):
        totals.add_rank(SECONDS, 0.0, (12.34, 0.0), SimpleNamespace(rank=0, world_size=2))
    one.replace(one.summed() + other.summed(), torch.maximum(one.maxima, other.maxima))
    record = one.record(time_scaling=True)
    assert (record["loss"], record["num_documents"]) == (3.0, 6)
    assert (record["num_tokens"], record["tokens_imbalance"]) == (400, 1.5)  # 100 and 300, 200 in the mean
    assert record["effective_num_learned"] == pytest.approx(24**2 / 60)
    assert record["largest_weight_share"] == pytest.approx(4 / 24)
    assert record["max_inverse_t"] == pytest.approx(20)


def test_metrics_file(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    file = MetricsFile(path)
    file.write("step", 1, {"loss": 2.0, "list": [float("nan"), 1.0]})
    file.write("heldout", 1, {"mean": 3.0})
    file.close()
    with path.open("a") as cut:
        cut.write('{"kind": "step", "st')  # killed in the middle of a line
    again = MetricsFile(path)
    again.write("solve", 2, {})
    again.close()
    records = list(read_metrics(path))
    assert [record["kind"] for record in records] == ["step", "heldout", "solve"]
    assert records[0]["list"] == [None, 1.0]
    assert [record["mean"] for record in read_metrics(path, "heldout")] == [3.0]


def test_a_disk_that_takes_no_line():
    file = MetricsFile(Path("/dev/full"))
    with pytest.raises(RuntimeError, match=r"^/dev/full: no line can be added: No space left on device. Checkpoints"):
        file.write("step", 1, {"loss": 1.0})
    file.close()  # which says nothing more


def test_steps_that_a_resume_went_back_behind_are_counted_once(tmp_path, capsys):
    """A run of 3 steps goes back to its checkpoint of step 1, and on to step 3."""
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path)

    def write(steps, loss):
        for step in steps:
            file.write("step", step, {"loss": loss, "num_tokens": 100, "seconds": loss})
            file.write("heldout", step, {"mean": loss})

    write((1, 2, 3), 2.0)
    file.write("resume", 1, {"checkpoint": "step-000001"})
    write((2, 3), 1.0)
    file.close()
    assert [(record["step"], record["loss"]) for record in read_metrics(path, "step")] == [(1, 2.0), (2, 1.0), (3, 1.0)]
    assert [record["kind"] for record in read_metrics(path)][:3] == ["step", "heldout", "resume"]
    print_summary(tmp_path, {})
    printed = capsys.readouterr().out
    assert "training       3 steps, 75 tokens/s" in printed
    assert "held-out loss  2.0000 (step 1) -> 1.0000 (step 3)" in printed


def show(progress, steps):
    for step in range(1, steps + 1):
        record = make_totals().record(True) | {
            "grad_norm": 0.7,
            "lr": 1e-3,
            "seconds": 1.0,
            "tokens_per_second": 1234.0,
            "mfu": 0.345 if step % 2 else None,
        }
        progress.show_step(step, record | {"loss": 3.0 / step})
    progress.close()


def test_plain_lines():
    output = io.StringIO()
    show(PlainProgress(Console(file=output, width=240), 3, every_seconds=0.0), 3)
    lines = output.getvalue().splitlines()
    assert len(lines) == 3
    assert lines[-1] == (
        "step 3/3  loss 1.0000  easy 33% random 33% hard 33%  grad 0.700  lr 1.00e-03  1,234 tok/s  MFU 34%  "
        "peak 12.3 GiB  scoring 50% forward 20% backward 30%  ETA 0:00"
    )
    assert "1,234 tok/s  peak 12.3 GiB  scoring" in lines[1]  # a device whose peak is not known


def test_live_panel():
    output = io.StringIO()
    progress = LiveProgress(Console(file=output, force_terminal=True, width=100), 40, "title")
    progress.say("a message")
    show(progress, 40)
    text = output.getvalue()
    for part in (
        "title",
        "a message",
        "40 / 40",
        "1,234",
        "grad norm",
        "easy 33%",
        "backward 30%",
        "12 tokens, worth 5; the heaviest 33.3%",
        "peak 12.3 GiB",
        "█",
    ):
        assert part in text


def test_sparkline():
    assert sparkline([0.0, 1.0], 0) == "▁█"
    assert len(sparkline([float(value) for value in range(500)], 60)) == 60
    assert sparkline([2.0, 2.0], 0) == "▁▁"
