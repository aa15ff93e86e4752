"""Every preset in `ds_configs/` trains: the same steps as `zero3.json`, whatever is cut, gathered or offloaded."""

import json

import pytest

from tests.conftest import BASE, REPOSITORY, SMALL, launch_train, losses_of

FOLDER = REPOSITORY / "ds_configs"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
IN_ALL_TESTS = ("zero3_hpz", "debug_cpu")
LORA = ["lora.rank=4", "lora.dropout=0.1"]


def steps_under(preset, output, *settings, num_ranks=2, num_nodes=1):
    """Loss and gradient norm of each of three steps in float32."""
    launch_train(
        *SMALL, "--model", BASE, "--deepspeed", FOLDER / f"{preset}.json", "--output", output, "optim.steps=3",
        "optim.global_batch=8", "optim.lr=1e-3", "eval.rows=0", "checkpoint.save_every=0", "eval.solve_items=0",
        *settings, num_ranks=num_ranks, num_nodes=num_nodes,
    )  # fmt: skip
    return losses_of(output)


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """By the preset's settings: the steps under `zero3.json` on two ranks."""
    folder = tmp_path_factory.mktemp("zero3")
    found = {}

    def under(*settings):
        if settings not in found:
            found[settings] = steps_under("zero3", folder / str(len(found)), *settings)
        return found[settings]

    return under


@pytest.mark.distributed
@pytest.mark.parametrize(
    "preset", [name if name in IN_ALL_TESTS else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
)
def test_a_preset_takes_the_steps_of_zero3(preset, tmp_path, expected):
    """Presets that cut once more within a machine run on two machines of two ranks."""
    zero = json.loads((FOLDER / f"{preset}.json").read_text())["zero_optimization"]
    cuts_twice = "zero_hpz_partition_size" in zero
    settings = LORA if preset.startswith("lora_") else []
    steps = steps_under(preset, tmp_path / "run", *settings, num_ranks=4 if cuts_twice else 2, num_nodes=1 + cuts_twice)
    record = json.loads((tmp_path / "run" / "run.json").read_text())["deepspeed"]["zero_optimization"]
    assert record.get("zero_hpz_partition_size", 1) == (2 if cuts_twice else 1)
    assert len(steps) == 3
    for step, (loss, norm) in expected(*settings).items():
        assert steps[step] == (pytest.approx(loss, rel=2e-6), pytest.approx(norm, rel=2e-5)), step


@pytest.mark.slow
@pytest.mark.distributed
def test_a_run_that_cuts_twice_goes_on_without(tmp_path, expected):
    """From two machines of two ranks under `zero3_hpz.json` to one under `zero3.json`, and back."""
    for first, second, ranks in (("zero3_hpz", "zero3", (4, 2)), ("zero3", "zero3_hpz", (2, 4))):
        begun, resumed = tmp_path / f"{first}-begun", tmp_path / f"{first}-resumed"
        steps_under(first, begun, "checkpoint.save_every=2", num_ranks=ranks[0], num_nodes=ranks[0] // 2)
        options = ("--resume", begun / "checkpoints" / "step-000002")
        steps = steps_under(second, resumed, *options, num_ranks=ranks[1], num_nodes=ranks[1] // 2)
        loss, norm = expected()[3]
        assert steps[3] == (pytest.approx(loss, rel=2e-6), pytest.approx(norm, rel=2e-5))
