"""The warm-up on two real ranks: nothing of a run changes, and memory that runs out in it is explained."""

import json

import pytest

from tests.conftest import REPOSITORY, SMALL, latest, read_steps, run_script
from tests.distributed.same_losses import NUM_STEPS, write_model

pytestmark = pytest.mark.distributed

BF16, ONE_MICRO_BATCH = {"bf16": {"enabled": True}}, {"train_micro_batch_size_per_gpu": 3}
ZERO = {
    stage: json.loads((REPOSITORY / "ds_configs" / f"zero{max(stage, 2)}.json").read_text())["zero_optimization"]
    | {"stage": stage}
    for stage in (1, 2, 3)
}
NOTHING_STAYS = dict.fromkeys(
    ("stage3_param_persistence_threshold", "stage3_max_reuse_distance", "stage3_max_live_parameters"), 0
)
ADAPTERS = ["lora.rank=4", "lora.dropout=0.1", "model.gradient_checkpointing=true"]
TABLE = ["objective.scoring=buffer", "objective.warm_start_steps=1", "objective.refresh_share=0.5"]


def setting(stage, json_changes=None, *overrides, zero=None):
    changes = {"zero_optimization": ZERO[stage] | (zero or {})} | (json_changes or {})
    return [stage if stage == 3 else 2, changes, [*overrides]]


SETTINGS = {  # two micro-batches a step, but where another number is named
    "1": setting(1),
    "1 bf16": setting(1, BF16),
    "2": setting(2, None, *TABLE),
    "2 one": setting(2, ONE_MICRO_BATCH, "objective.complementary=true"),
    "2 bf16": setting(2, BF16),
    "2 bf16 one, adapters": setting(2, BF16 | ONE_MICRO_BATCH, *ADAPTERS),
    "3": setting(3, None, "objective.method=gift"),
    "3 one, let go of": setting(3, ONE_MICRO_BATCH, zero=NOTHING_STAYS),
    "3 bf16, packed": setting(3, BF16, "data.packing=best_fit"),
    "3 adapters": setting(3, None, *ADAPTERS, "objective.scoring=memory"),
}
IN_ALL_TESTS = ("1 bf16", "2", "3 bf16, packed", "3 adapters")
OFFLOAD = {"offload_optimizer": {"device": "cpu"}}
OFFLOADED = {
    f"{stage} {name}": setting(stage, changes, zero=OFFLOAD)
    for stage in (1, 2, 3)
    for name, changes in {"": None, "one": ONE_MICRO_BATCH, "bf16": BF16, "bf16 one": BF16 | ONE_MICRO_BATCH}.items()
}


@pytest.mark.parametrize(
    "settings",
    [
        {name: SETTINGS[name] for name in IN_ALL_TESTS},
        *(pytest.param(settings, marks=pytest.mark.slow) for settings in (SETTINGS, OFFLOADED)),
    ],
    ids=["some", "all", "offloaded"],
)
def test_nothing_of_a_run_changes(tmp_path, settings):
    """Losses, weights, optimizer, position, generator, table and DeepSpeed's counts are those of runs without it."""
    write_model(tmp_path / "model")
    output = tmp_path / "out.json"
    wanted = json.dumps([[name, *each] for name, each in settings.items()])
    run_script("tests/distributed/warm_up.py", output, tmp_path, wanted, num_ranks=2, timeout=600)
    found = json.loads(output.read_text())
    assert list(found) == list(settings)
    for name, (without, with_it) in found.items():
        assert without == with_it, name
        assert {of_rank["invalidations"] for of_rank in with_it} == {0}, name
        assert {of_rank["counts"]["global_steps"] for of_rank in with_it} == {NUM_STEPS}, name


RUNS_OUT = """
import os

import torch

from lift_ds.cli import train
from lift_ds.training import step

real = step.chunked_weighted_nll
def weighted_nll(*given):
    if os.environ["RANK"] == "1":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    return real(*given)

step.chunked_weighted_nll = weighted_nll
train.main()
"""


def test_memory_that_runs_out_on_one_rank_ends_the_run_on_all(tiny_dir, tmp_path):
    """Rank 1 says with which micro-batch, in which part, what was planned for it, and what makes room."""
    script, output = tmp_path / "script.py", tmp_path / "run"
    script.write_text(RUNS_OUT)
    wanted = ["--model", tiny_dir, "--output", output, "model.warm_up=true", "eval.rows=0", "eval.solve_items=0"]
    done = run_script(
        script, *latest(*SMALL, *wanted, "data.check_rows=20", "data.max_length=2048"), num_ranks=2, check=False
    )
    assert done.returncode == 1
    assert done.stdout.count("error on rank 1: torch.OutOfMemoryError: CUDA out of memory") == 1
    said = done.stdout.partition("error on rank 1")[2]
    assert "memory ran out in the part 'forward' of a step" in said
    assert "the largest micro-batch that may come, 2 x 2,048 tokens (longest allowed 2,048)" in said
    assert "  planned for the training pass: " in said
    remedies = [line for line in said.splitlines() if line.startswith("  change ")]
    assert len(remedies) >= 3 and any("model.checkpoint_layers=" in line for line in remedies)
    assert any("data.check_rows" in line for line in remedies)  # not all of the 200 rows were read
    assert not read_steps(output)
