"""A lost `latest` stands for the newest whole checkpoint, and that is said; a lost `best` is an error."""

import json
import shutil
import warnings

import pytest
from safetensors.torch import load_file

from lift_ds.cli import average_checkpoints, inspect_checkpoint, reshard, zero_to_hf
from lift_ds.storage.manifest import find_checkpoint, pointed
from lift_ds.storage.zero_files import find_shard_folder, follow
from tests.conftest import VECTORS
from tests.storage.test_manifest import make_checkpoint

RUN = VECTORS / "runs_857c343" / "full"
FAULTS = {
    "is empty": lambda pointer: pointer.write_text(""),
    "is missing": lambda pointer: pointer.unlink(),
    "points to step-000040, which is not there": lambda pointer: pointer.write_text("step-000040\n"),
}


@pytest.fixture(params=FAULTS)
def lost(request, tmp_path):
    """A run whose `latest` is lost, and what is said of it."""
    for step in (10, 20, 30):
        make_checkpoint(tmp_path / "checkpoints", step)
    FAULTS[request.param](tmp_path / "checkpoints" / "latest")
    return tmp_path, request.param


def test_the_newest_whole_one_is_taken_and_said(lost):
    run, fault = lost
    checkpoints = run / "checkpoints"
    (checkpoints / "step-000030" / "zero" / "shard1.pt").write_bytes(b"")
    expected = (
        rf"latest {fault}; taken is the newest whole checkpoint, step-000020 \(not step-000030: "
        r"zero/shard1.pt has 0 bytes instead of 1000\)\."
    )
    for find in (lambda: follow(run), lambda: follow(checkpoints), lambda: pointed(checkpoints / "latest")):
        with pytest.warns(UserWarning, match=expected):
            assert find() == checkpoints / "step-000020"
    with pytest.warns(UserWarning, match=expected):
        assert find_checkpoint(checkpoints, str(checkpoints / "latest")) == (checkpoints / "step-000020", [])


def test_no_whole_one(lost):
    run, fault = lost
    for step in (10, 20, 30):
        (run / "checkpoints" / f"step-{step:06d}" / "manifest.json").write_text("")
    with pytest.raises(ValueError, match=rf"latest {fault}, and there is no whole checkpoint in .*Name a"):
        find_shard_folder(run)
    with pytest.raises(ValueError, match=r"checkpoint.resume=auto: no whole checkpoint in .* Remove the broken ones"):
        find_checkpoint(run / "checkpoints", "auto")


@pytest.mark.parametrize("fault", FAULTS)
def test_a_lost_best_names_what_is_there(tmp_path, fault):
    for step in (10, 20):
        make_checkpoint(tmp_path, step)
    (tmp_path / "best").write_text("step-000010\n")
    assert pointed(tmp_path / "best") == tmp_path / "step-000010"
    FAULTS[fault](tmp_path / "best")
    for find in (pointed, find_shard_folder, lambda path: find_checkpoint(tmp_path, str(path))):
        with pytest.raises(ValueError, match=f"best {fault}; name a .* There are: step-000010, step-000020"):
            find(tmp_path / "best")


def test_nothing_is_said_of_pointers_that_hold(tmp_path):
    make_checkpoint(tmp_path / "checkpoints", 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert follow(tmp_path) == tmp_path / "checkpoints" / "step-000010"
        assert follow(tmp_path / "nowhere") is None
        assert pointed(tmp_path / "latest") == tmp_path / "latest"


@pytest.mark.filterwarnings("ignore:.*is missing; taken is the newest whole")
def test_tools_on_a_run_without_latest(tmp_path, capsys):
    run = shutil.copytree(RUN, tmp_path / "run")
    checkpoint = run / "checkpoints" / "step-000003"
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["files"] = {name: facts for name, facts in manifest["files"].items() if (checkpoint / name).is_file()}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))  # some files of the stored run lie elsewhere
    (run / "checkpoints" / "latest").unlink()
    model = str(VECTORS / "runs_857c343" / "model")
    for source, name in ((run, "lost"), (checkpoint, "named")):
        zero_to_hf.main([str(source), str(tmp_path / name), "--weights-only", "--config", model])
    lost, named = (load_file(tmp_path / name / "model.safetensors") for name in ("lost", "named"))
    assert lost.keys() == named.keys()
    assert all(bool((lost[key] == named[key]).all()) for key in lost)
    average_checkpoints.main([str(run), str(run), str(tmp_path / "mean"), "--weights-only", "--config", model])
    reshard.main([str(run), "1", str(tmp_path / "resharded")])
    capsys.readouterr()
    inspect_checkpoint.main([str(run)])
    assert "step-000003" in capsys.readouterr().out
