"""Runs that an older version wrote (`tests/data/runs_857c343`) go on, export, and are read by every tool."""

import json
import math
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file

from lift_ds.cli import evaluate, inspect_checkpoint, learnability, zero_to_hf
from lift_ds.ranks.shares import Alone
from lift_ds.storage.run_record import FORMAT, RUN_FILE, read_run
from lift_ds.training.buffers import DifficultyBuffers, table_files
from tests.conftest import VECTORS, clean_environment, losses_of
from tests.preloaded import Preloaded

pytestmark = pytest.mark.distributed

OLD = VECTORS / "runs_857c343"
# Those that the runs were written under: the same instructions on every x86 processor.
SAME_INSTRUCTIONS = {"ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "COMPATIBLE", "ONEDNN_MAX_CPU_ISA": "AVX2"}
PINNED = Preloaded(clean_environment(**SAME_INSTRUCTIONS))  # they are chosen when torch is imported


def copy_run(name, parent):
    """A run with its base and its rows, and with the files back in place that are stored once."""
    folder = shutil.copytree(OLD / name, parent / name)
    shutil.copytree(OLD / "model", parent / "model")
    shutil.copy(OLD / "rows.jsonl", parent)
    checkpoint = folder / "checkpoints" / "step-000003"
    shutil.copy(OLD / "model" / "tokenizer.json", checkpoint / "hf")
    for path in OLD.glob("zero_to_*.txt"):
        shutil.copy(path, checkpoint / f"{path.stem}.py")
    return folder


def resuming(folder):
    """Arguments that go on with a run as the user would, by the settings that it recorded."""
    recipe = folder.parent / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(read_run(folder)["run"]))
    arguments = ["--deepspeed", "ds_configs/zero3.json", "--config", recipe, "--model", folder.parent / "model"]
    return [*arguments, "--data", folder.parent / "rows.jsonl", "--output", folder, "--resume", "auto"]


def resume(folder, **kwargs):
    """Goes on on two ranks; `kwargs` are those of `Preloaded.run`."""
    return PINNED.run(["launchers/train.py", *map(str, resuming(folder))], **{"num_ranks": 2, **kwargs})


def computed(folder):
    """Losses and gradient norms of the steps after the third, and the last held-out loss."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    heldout = [record for record in records if record["kind"] == "heldout" and record["step"] == 6]
    return {step: each for step, each in losses_of(folder).items() if step > 3}, heldout[-1]["mean"]


def expected(name):
    """The same, as the version that wrote the run computed it."""
    loaded = json.loads((OLD / name / "expected.json").read_text())
    return {int(step): tuple(each) for step, each in loaded["steps"].items()}, loaded["heldout_loss"]


def assert_as_it_was(folder, name):
    """The first step to the last digit of a float32, or next to it; what follows from that, to five digits."""
    (steps, heldout), (expected_steps, expected_heldout) = computed(folder), expected(name)
    assert list(steps) == list(expected_steps) and heldout == pytest.approx(expected_heldout, rel=1e-6)
    for step, values in expected_steps.items():
        assert steps[step] == pytest.approx(values, rel=1e-7 if step == 4 else 1e-5)


@pytest.mark.parametrize("name", ["full", "lora"])
def test_it_goes_on_as_it_did(name, tmp_path):
    """Bit-equal on the processor that wrote the runs; on others the high learning rate makes more of a last digit."""
    folder = copy_run(name, tmp_path)
    assert "format" not in json.loads((folder / RUN_FILE).read_text())
    done = resume(folder)
    assert f"resumed from {folder}/checkpoints/step-000003 at step 3" in done.stdout
    assert_as_it_was(folder, name)
    if name == "full":  # the best checkpoint is still the old one, by what was measured then
        assert (folder / "checkpoints" / "best").read_text() == (OLD / name / "checkpoints" / "best").read_text()
    new = folder / "checkpoints" / "step-000006"
    assert [json.loads((each / RUN_FILE).read_text())["format"] for each in (folder, new)] == [FORMAT, FORMAT]
    assert json.loads((new / "manifest.json").read_text())["format"] == FORMAT


def test_it_goes_on_on_one_rank(tmp_path):
    """The first step's sums differ in their last digit, 6e-8 of a loss; the high learning rate makes more of that."""
    folder = copy_run("full", tmp_path)
    resume(folder, num_ranks=None)
    assert_as_it_was(folder, "full")


def test_difficulty_buffers_go_on(tmp_path):
    """What was observed until step 2, and at step 3 after the last sync, is in the table of step 6, decayed by 0.9."""
    folder = copy_run("buffers", tmp_path)
    checkpoint, old = folder / "checkpoints" / "step-000003", DifficultyBuffers(2048, Alone(), 0.9, 2)
    stored = [load_file(file) for file in table_files(checkpoint)]
    old.load(checkpoint, 3)
    for key, found in (("sums", old.table.sums), ("counts", old.table.counts)):
        assert torch.equal(found, torch.cat([each[key] for each in stored]))
        assert found.sum() > 0
    pending = old.table.pending
    assert (old.table.step, old.table.pending_step) == (2, 3)
    assert len(pending.keys) > 0
    resume(folder)
    steps, heldout = computed(folder)
    assert sorted(steps) == [4, 5, 6]
    assert all(math.isfinite(value) for values in steps.values() for value in values)
    assert heldout < 7.63  # 7.6395 before the first step
    new = DifficultyBuffers(2048, Alone(), 0.9, 2)
    new.load(folder / "checkpoints" / "step-000006", 6)
    assert new.table.step == 6
    kept = old.table.counts * 0.9**4
    kept.view(-1).index_add_(0, pending.keys, pending.counts.float() * 0.9**3)
    gained = new.table.counts - kept
    assert gained.min() > -1e-4
    assert gained.sum() > 1


@pytest.mark.parametrize("name", ["full", "lora", "buffers"])
def test_tools_read_it(name, tmp_path, monkeypatch, capsys):
    folder, facts = copy_run(name, tmp_path), tmp_path / "facts.json"
    monkeypatch.chdir(tmp_path)  # where `model` and `rows.jsonl`, as recorded, are
    inspect_checkpoint.main([name, "--json", str(facts)])
    found = json.loads(facts.read_text())
    assert (found["step"], found["is_whole"], found["base"], found["steps_planned"]) == (3, True, "model", 6)
    export = [name, "export", "--verify", *([] if name == "full" else ["--base", "model"])]
    zero_to_hf.main([*export, "--json", str(facts)])
    assert json.loads(facts.read_text())["num_parameters"] == 2 * 2048 * 8 + 2 * (4 * 8 * 8 + 3 * 8 * 16 + 2 * 8) + 8
    if name == "full":
        shutil.move("export", "full/export")
        flags = ["--tasks", "builtin:arithmetic", "--protocol", "clean", "--limit", "2", "--steps", "4"]
        evaluate.main(["--model", "full/export", *flags, "--output", "answers"])
        assert "arithmetic" in capsys.readouterr().out
        learnability.main(["full", "--rows", "4"])
    elif name == "buffers":
        learnability.main([name, "--buffers"])
        assert "step 3" in (folder / "learnability" / "learnability.csv").read_text()


@pytest.mark.slow
def test_a_newer_checkpoint_ends_every_rank(tmp_path):
    """It may be whole: the older one is not taken in its place. All ranks find it before they join; one says it."""
    folder = copy_run("full", tmp_path)
    newer = shutil.copytree(folder / "checkpoints" / "step-000003", folder / "checkpoints" / "step-000005")
    manifest = json.loads((newer / "manifest.json").read_text())
    (newer / "manifest.json").write_text(json.dumps(manifest | {"format": FORMAT + 1}))
    done = resume(folder, check=False)
    assert done.returncode != 0
    message = f"{newer}/manifest.json: its format is {FORMAT + 1}, and the newest that this version of lift_ds reads"
    assert done.stdout.count(message) == 1
    assert "passed over" not in done.stdout
