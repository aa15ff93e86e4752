"""What a run goes on with: its own settings, and what is given in their place only where it is meant or free."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from lift_ds.cli import train
from lift_ds.data.sources import Manifest, open_sources
from lift_ds.storage.manifest import hash_file
from lift_ds.training.resumed import Resumed, find_resumed, require_same_settings
from tests.conftest import REPOSITORY
from tests.training.test_old_runs import copy_run

MADE = ("run", "lanes", "manifest")
JSON = REPOSITORY / "ds_configs" / "zero3.json"
STEP = "full/checkpoints/step-000003"
NEWER_KEYS = {
    "eval": {"solve_data": "builtin:reasoning", "watch_every": 0, "patience": 0},
    "optim": {"skip_above": None},
}


@pytest.fixture
def started(tmp_path, monkeypatch, capsys):
    """Checks a start beside a run of three steps that an older version wrote (lr 0.2, vanilla, batch 4, 2 ranks)."""
    copy_run("full", tmp_path)
    monkeypatch.chdir(tmp_path)

    def start(*arguments, json_path=JSON, output="full", **resumed):
        command = ["--deepspeed", str(json_path), "--output", output, "--dry-run", *map(str, arguments)]
        status = 0
        try:
            train.main([*command, "--resume", resumed.get("resume", "auto")])
        except SystemExit as stopped:
            status = stopped.code
        printed = capsys.readouterr()
        return status, printed.out + printed.err

    return start


def config_of(printed):
    return yaml.safe_load(printed[printed.index("\nrun:\n") :])


def test_nothing_given_is_all_as_it_was(started):
    """Neither the built-in recipe nor a default takes the place of what was recorded."""
    status, printed = started()
    assert status == 0
    recorded = json.loads(Path(STEP, "run.json").read_text())["run"]
    run = config_of(printed)["run"]
    assert run["checkpoint"]["resume"] == "auto"
    for section in ("optim", "eval", "lora", "difficulty"):
        assert run[section] == recorded[section] | NEWER_KEYS.get(section, {})
    assert run["data"]["lanes"] == recorded["data"]["lanes"] == 2
    assert (run["optim"]["lr"], run["objective"]["method"], run["seed"]) == (0.2, "vanilla", 1)
    assert f"settings of {STEP}; changes: ranks: 2 -> 1\n" in printed


def test_what_differs_is_refused_all_at_once(started, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("objective:\n  method: lift3\noptim:\n  lr: 0.2\n  beta2: 0.98\n")
    (tmp_path / "zero.json").write_text(json.dumps(json.loads(JSON.read_text()) | {"gradient_clipping": 0.3}))
    given = ["--config", recipe, "optim.global_batch=8", "optim.steps=9", "eval.every=2", "seed=2", "lora.rank=4"]
    status, printed = started(*given, json_path=tmp_path / "zero.json")
    assert status == 2
    kept = "the run goes on with"
    for problem in (
        "6 problems",
        f"objective.method: vanilla -> lift3 (in {recipe}): {kept} vanilla; remove it, or mean it: --change o",
        f"optim.beta2: 0.999 -> 0.98 (in {recipe}): {kept} 0.999",
        f"optim.global_batch: 4 -> 8: {kept} 4; remove it, or mean it: --change optim.global_batch\n",
        "seed: 1 -> 2: cannot change in a run that goes on (order, noise and held-out rows follow from it)",
        "lora.rank: 0 -> 4: cannot change",
        f"deepspeed.gradient_clipping: 1.0 -> 0.3 (in {tmp_path}/zero.json): {kept} 1.0; remove it,",
    ):
        assert problem in printed
    meant = ["--change", "objective.method,optim.beta2", "--change", "optim.global_batch,deepspeed.gradient_clipping"]
    status, printed = started(*given[:-2], *meant, json_path=tmp_path / "zero.json")
    assert status == 0
    listed = printed.splitlines()[0]
    for change in (
        "objective.method: vanilla -> lift3",
        "objective.policy: not set -> time",
        "optim.steps: 6 -> 9",
        "optim.beta2: 0.999 -> 0.98",
        "optim.global_batch: 4 -> 8",
        "eval.every: 0 -> 2",
        "deepspeed.gradient_clipping: 1.0 -> 0.3",
    ):
        assert change in listed
    assert "optim.lr" not in listed
    resolved = config_of(printed)
    assert resolved["deepspeed"]["gradient_clipping"] == 0.3
    assert (resolved["run"]["optim"]["lr"], resolved["run"]["optim"]["steps"]) == (0.2, 9)


def test_moved_files_and_changed_files(started):
    """Another place of the same base and rows is free; other contents are refused before weights are read."""
    shutil.move("model", "base")
    shutil.move("rows.jsonl", "moved")
    shutil.copytree("base", "other")
    Path("there").mkdir()
    shutil.move("moved", "there/rows.jsonl")
    status, printed = started()
    assert status == 2 and "model.path='model'" in printed and "data.path='rows.jsonl'" in printed
    status, printed = started("--model", "base", "--data", "there/rows.jsonl")
    assert (
        status == 0
        and "model.path: model -> base" in printed
        and "data.path: rows.jsonl -> there/rows.jsonl" in printed
    )
    config = json.loads(Path("other/config.json").read_text())
    Path("other/config.json").write_text(json.dumps(config | {"rope_theta": 1.0}))
    named = ["--model", "other", "--data", "there/rows.jsonl"]
    status, printed = started(*named)
    assert status == 2
    assert "model.path=other: another model than the run's: rope_theta: 300.0 -> 1.0; name the one" in printed
    assert started(*named, "--change", "model.path")[0] == 0
    with Path("there/rows.jsonl").open("a") as rows:
        rows.write('{"prompt": "p", "response": "r"}\n')
    status, printed = started("--model", "base", "--data", "there/rows.jsonl")
    assert status == 2 and "data position does not fit this run: rows.jsonl has changed" in printed


def test_held_out_rows_are_part_of_the_data_position(started):
    status, printed = started("eval.rows=5")
    assert status == 2 and "rows held out was 4 and is 5" in printed


def test_another_output_goes_on_by_the_same_rule(started):
    for resume in (STEP, "full/checkpoints/best"):
        status, printed = started(output="new", resume=resume)
        assert status == 0 and config_of(printed)["run"]["optim"]["lr"] == 0.2
        assert started("optim.lr=1e-3", output="new", resume=resume)[0] == 2


def test_change_without_a_run_that_goes_on(started):
    named = ["--model", "model", "--data", "rows.jsonl", "--change", "optim.lr"]
    status, printed = started(*named, output="new", resume="none")
    assert status == 2 and "--change: there is no run that goes on" in printed
    status, printed = started(*named, output="new")
    assert status == 0 and "nothing to change, there is no checkpoint in new yet" in printed
    status, printed = started("optim.lr=0.2", "--change", "optim.lr")
    assert status == 0 and "--change optim.lr: nothing to change, the run has this value already" in printed


def test_a_run_that_ended_before_its_first_checkpoint(started):
    """It left its record: that is the same run. But nothing rests on its keys yet."""
    shutil.rmtree("full/checkpoints")
    status, printed = started()
    assert status == 0 and config_of(printed)["run"]["optim"]["lr"] == 0.2
    status, printed = started("seed=2", "optim.lr=1e-3")
    assert status == 2 and "mean it: --change seed" in printed and "mean it: --change optim.lr" in printed
    assert started("seed=2", "--change", "seed")[0] == 0


def test_a_later_start_that_left_no_checkpoint_is_said(started, tmp_path):
    record = json.loads((tmp_path / "full" / "run.json").read_text())
    record["run"]["optim"]["lr"] = 0.1
    (tmp_path / "full" / "run.json").write_text(json.dumps(record))
    status, printed = started()
    assert status == 0 and config_of(printed)["run"]["optim"]["lr"] == 0.2
    assert (
        "full/run.json, of a later start without a checkpoint, had optim.lr=0.1; the checkpoint was made with 0.2"
        in printed
    )


def test_a_damaged_checkpoint_is_not_replaced_by_one_of_other_settings(tmp_path):
    """Its bytes are looked at when it is loaded; by then the run has its settings."""
    folder = copy_run("full", tmp_path)
    newest = find_resumed(folder, "auto")
    older = shutil.copytree(newest.folder, tmp_path / "step-000002")
    require_same_settings(newest, older)
    record = json.loads((older / "run.json").read_text())
    record["run"]["optim"]["lr"] = 0.3
    (older / "run.json").write_text(json.dumps(record))
    with pytest.raises(
        ValueError, match=r"is damaged, and .*step-000002, .* other settings: optim.lr: 0.2 -> 0.3. Name it"
    ):
        require_same_settings(newest, older)
    require_same_settings(Resumed(folder, False, newest.record), older)


def test_the_readmes_line(started, tmp_path):
    """Mapped columns and a learning rate are not given again: README's second and last command."""
    readme = (REPOSITORY / "README.md").read_text()
    assert "launchers/train.py --deepspeed ds_configs/zero3.json --data rows.jsonl --resume auto\n" in readme
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    renamed = [{"question": row["prompt"], "generation": row["response"]} for row in rows]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in renamed))
    checkpoint = tmp_path / STEP
    record, lanes, manifest = (json.loads((checkpoint / f"{name}.json").read_text()) for name in MADE)
    record["run"]["data"]["columns"] |= {"prompt": "question", "response": "generation"}
    lanes["manifest"] = Manifest(open_sources(["rows.jsonl"], 0, "train", 1)).state()
    for name, content in zip(MADE, (record, lanes, manifest), strict=True):
        (checkpoint / f"{name}.json").write_text(json.dumps(content))
        if name != "manifest":
            manifest["files"][f"{name}.json"] = asdict(hash_file(checkpoint / f"{name}.json"))
    status, printed = started("--data", "rows.jsonl")
    assert status == 0 and config_of(printed)["run"]["optim"]["lr"] == 0.2
    assert "columns {'prompt': 'question', 'response': 'generation'}" in printed
    status, printed = started("--data", "rows.jsonl", "data.columns.prompt=answer")
    assert status == 2 and "data.columns.prompt: question -> answer: cannot change" in printed
