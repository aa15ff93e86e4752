"""What runs of two real ranks measure while they train, and which checkpoint they keep and export."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from lift_ds.cli import zero_to_hf
from lift_ds.config.loading import load_run_config
from lift_ds.storage.run_folder import read_metrics
from lift_ds.training.inputs import prepare
from lift_ds.training.measure import Measurements
from lift_ds.training.patience import Patience
from lift_ds.training.progress import Progress
from tests.conftest import REPOSITORY, SMALL, launch_train
from tests.distributed.jobs import THRESHOLDS

pytestmark = pytest.mark.distributed

MEASURED = [
    *SMALL, "checkpoint.save_every=2", "checkpoint.keep=1", "checkpoint.best_by=heldout_loss", "eval.rows=5",
    "eval.solve_items=0", "eval.solve_every=3", "eval.solve_subset=3", "eval.watch_every=2", "eval.steps=4",
    "eval.gen_length=8", "eval.block_length=4",
]  # fmt: skip


@pytest.fixture(scope="module")
def measured(tiny_dir, tmp_path_factory):
    """Four steps that learn, on two ranks that gather every parameter for every use."""
    folder = tmp_path_factory.mktemp("measured")
    loaded = json.loads((REPOSITORY / "ds_configs" / "zero3.json").read_text())
    zero = loaded["zero_optimization"] | dict.fromkeys(THRESHOLDS, 0)
    (folder / "zero.json").write_text(json.dumps(loaded | {"zero_optimization": zero}))
    command = [*MEASURED, "--deepspeed", folder / "zero.json", "--model", tiny_dir, "--output", folder / "run"]
    done = launch_train(*command, "optim.steps=4")
    return folder / "run", done.stdout


@pytest.fixture(scope="module")
def worse(measured, tiny_dir, tmp_path_factory):
    """The same run, gone on with on one rank for four steps of a hundred times the rate; the best one is exported."""
    output = tmp_path_factory.mktemp("worse") / "run"
    shutil.copytree(measured[0], output)
    command = [*MEASURED, "--model", tiny_dir, "--output", output, "--resume", "auto", "optim.steps=8", "optim.lr=1"]
    command += ["--change", "optim.lr"]
    return output, launch_train(*command, "checkpoint.export=best", num_ranks=1).stdout


def records(output, kind):
    return read_metrics(output / "metrics.jsonl", kind)


def test_each_checkpoint_is_measured(measured):
    """Every two steps, though eval.every is 0; and the answers of every third step are recorded."""
    output, printed = measured
    losses = records(output, "heldout")
    assert [record["step"] for record in losses] == [0, 2, 4]
    assert losses[2]["mean"] < losses[1]["mean"] < losses[0]["mean"]
    tokens = torch.tensor(losses[0]["num_tokens_by_level_and_frequency"])
    assert tokens.shape == (5, len(losses[0]["by_frequency"]))
    assert (tokens.sum(1).diff() > 0).all()  # more is masked at higher levels, the same at every step
    assert all(record["num_tokens_by_level_and_frequency"] == tokens.tolist() for record in losses)
    (answers,) = records(output, "solve")
    assert (answers["step"], answers["moment"]) == (3, "during")
    assert sum(score["num_items"] for score in answers["scores"].values()) == 3
    assert answers["forwards_per_item"] == 4
    assert answers["solve_rate"] == 0
    assert 0 <= answers["truncation_rate"] <= 1 and 0 <= answers["parse_failure_rate"] <= 1
    assert [printed.count(f"\nstep {step}, ") for step in (2, 4)] == [1, 1]  # items that were watched
    assert "step 4: step-000004 is the best checkpoint, heldout_loss" in printed
    assert f"best           {output}/checkpoints/step-000004" in printed
    assert sorted(path.name for path in (output / "checkpoints").iterdir()) == ["best", "latest", "step-000004"]


def test_the_best_one_outlives_worse_ones(measured, worse):
    output, printed = worse
    resumed, *later = records(output, "heldout")[3:]
    before = records(measured[0], "heldout")[-1]
    assert (resumed["step"], [record["step"] for record in later]) == (4, [6, 8])
    for key in ("mean", "by_level", "by_frequency"):  # one rank measures what two did
        assert resumed[key] == pytest.approx(before[key], rel=1e-6)
    assert all(record["mean"] > resumed["mean"] for record in later)
    checkpoints = output / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["best", "latest", "step-000004", "step-000008"]
    assert (checkpoints / "best").read_bytes() == (measured[0] / "checkpoints" / "best").read_bytes()
    assert "every tensor and the logits of the export are those of step-000004" in printed
    exported = load_file(output / "export-2" / "model.safetensors")
    expected = load_file(measured[0] / "export" / "model.safetensors")
    assert all(torch.equal(exported[name], expected[name]) for name in expected)


def test_the_best_one_is_named_to_tools(worse, tmp_path):
    output, _ = worse
    zero_to_hf.main([str(output / "checkpoints" / "best"), str(tmp_path / "best")])
    exported, expected = (
        load_file(folder / "model.safetensors") for folder in (tmp_path / "best", output / "export-2")
    )
    assert all(torch.equal(exported[name], expected[name]) for name in expected)


def test_a_question_that_is_too_long_is_found_before_the_first_step(tiny_dir, tmp_path):
    asked = ["eval.gen_length=2048", "eval.block_length=2048", "eval.solve_every=9", "data.builtin_rows=20"]
    settings, problems = load_run_config(None, asked, {"model.path": str(tiny_dir), "output": str(tmp_path)})
    assert not problems
    measurements = Measurements(prepare(settings), None, 1, Progress(), record=None, patience=Patience(0))
    with pytest.raises(ValueError, match="longer than the 2048 tokens that the model was made for"):
        measurements.check()
