"""Manifests and what resume makes of damaged folders, without starting an engine."""

import json
import shutil
import warnings
from dataclasses import asdict

import pytest

from lift_ds.storage.manifest import (
    CheckpointManifest,
    find_checkpoint,
    find_faults,
    hash_file,
    model_fingerprint,
    publish_checkpoint,
    read_manifest,
    remove_old,
    require_whole,
)
from lift_ds.storage.run_record import FORMAT, NewerFormatError


def make_checkpoint(folder, step):
    temporary = folder / f".writing-step-{step:06d}"
    (temporary / "zero").mkdir(parents=True)
    for rank in range(2):
        (temporary / "zero" / f"shard{rank}.pt").write_bytes(bytes([step % 256, rank]) * 500)
    files = {str(path.relative_to(temporary)): hash_file(path) for path in temporary.rglob("*") if path.is_file()}
    (temporary / "manifest.json").write_text(json.dumps(asdict(CheckpointManifest(step, 2, 3, "model", files))))
    publish_checkpoint(temporary, folder / f"step-{step:06d}")
    return folder / f"step-{step:06d}"


@pytest.fixture
def folder(tmp_path):
    for step in (10, 20, 30):
        make_checkpoint(tmp_path, step)
    return tmp_path


def test_the_newest_whole_one_is_taken(folder):
    assert (folder / "latest").read_text() == "step-000030\n"
    assert find_checkpoint(folder, "auto") == (folder / "step-000030", [])
    assert read_manifest(folder / "step-000030").step == 30


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: (path / "zero" / "shard1.pt").unlink(), "zero/shard1.pt is missing"),
        (lambda path: (path / "zero" / "shard1.pt").write_bytes(b"short"), "has 5 bytes instead of 1000"),
        (lambda path: (path / "zero" / "shard1.pt").write_bytes(b"x" * 1000), "has changed (checksum)"),
        (lambda path: (path / "manifest.json").unlink(), "no readable manifest.json"),
        (lambda path: (path / "manifest.json").write_text("{"), "no readable manifest.json"),
    ],
)
def test_a_damaged_one_is_passed_over_with_its_reason(folder, damage, reason):
    damage(folder / "step-000030")
    chosen, passed_over = find_checkpoint(folder, "auto")
    assert chosen == folder / "step-000020"
    assert len(passed_over) == 1
    assert reason in passed_over[0]
    with pytest.raises(ValueError, match="whole"):
        find_checkpoint(folder, str(folder / "step-000030"))


def test_only_damaged_ones_are_an_error_not_a_silent_restart(folder):
    for path in folder.glob("step-*"):
        (path / "zero" / "shard0.pt").unlink()
    with pytest.raises(ValueError, match="no whole checkpoint"):
        find_checkpoint(folder, "auto")


def test_nothing_there(tmp_path):
    assert find_checkpoint(tmp_path / "checkpoints", "auto") == (None, [])
    with pytest.raises(ValueError, match="no readable manifest"):
        find_checkpoint(tmp_path, str(tmp_path / "nowhere"))


def set_format(checkpoint, number):
    """Writes the manifest anew as of that format; `None` leaves the number out, as format 1 did."""
    path = checkpoint / "manifest.json"
    loaded = json.loads(path.read_text()) | {"format": number}
    path.write_text(json.dumps({key: value for key, value in loaded.items() if value is not None}))


@pytest.mark.parametrize("number", [None, 1, 2])
def test_older_formats_are_read(folder, number):
    set_format(folder / "step-000030", number)
    assert find_checkpoint(folder, "auto") == (folder / "step-000030", [])
    assert read_manifest(folder / "step-000030").format == FORMAT == 2


def test_a_newer_format_is_refused_not_passed_over(folder):
    """Also where an older checkpoint is whole, and where the newer one is asked for by name."""
    newer = folder / "step-000030"
    set_format(newer, FORMAT + 1)
    message = rf"^{newer}/manifest.json: its format is 3, and the newest that this version .* reads is 2"
    for read in (
        lambda: find_checkpoint(folder, "auto"),
        lambda: find_checkpoint(folder, str(newer)),
        lambda: require_whole(newer),
    ):
        with pytest.raises(NewerFormatError, match=message):
            read()
    assert find_checkpoint(folder, str(folder / "step-000020"))[0] == folder / "step-000020"


@pytest.mark.parametrize("number", [0, -1, True, "2", 1.0])
def test_a_format_that_is_none(folder, number):
    set_format(folder / "step-000030", number)
    chosen, passed_over = find_checkpoint(folder, "auto")
    assert chosen == folder / "step-000020"
    assert "is no whole number from 1; this is no whole checkpoint" in passed_over[0]


def test_retention(folder):
    (folder / ".writing-step-000040").mkdir()
    remove_old(folder, newest=30, keep=2)
    assert sorted(path.name for path in folder.iterdir()) == ["latest", "step-000020", "step-000030"]


def test_the_checkpoint_just_written_is_never_removed(folder):
    """Resumed at step 10 of a run whose later checkpoints are still there: those do not count."""
    remove_old(folder, newest=10, keep=1)
    assert (folder / "step-000010").is_dir()


def test_what_cannot_be_removed_is_warned_of_once_and_the_rest_removed(folder, monkeypatch):
    """Step 10 stays, as on a disk of its own; step 20 and the interrupted save go. A copy by hand is left alone."""
    remove = shutil.rmtree

    def refuse(path):
        if path.name == "step-000010":
            raise PermissionError(13, "Permission denied", str(path))
        remove(path)

    monkeypatch.setattr("lift_ds.storage.manifest.shutil.rmtree", refuse)
    (folder / ".writing-step-000040").mkdir()
    (folder / "step-000030.bak").mkdir()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        remove_old(folder, newest=30, keep=1)
        remove_old(folder, newest=30, keep=1)
    assert [str(warning.message) for warning in caught] == [
        f"{folder}/step-000010: old, and cannot be removed (Permission denied); remove it yourself."
    ]
    left = sorted(path.name for path in folder.iterdir())
    assert left == ["latest", "step-000010", "step-000030", "step-000030.bak"]


def test_a_file_that_cannot_be_read_is_a_fault(folder, monkeypatch):
    def fail(path):
        raise OSError(5, "Input/output error", str(path))

    path = folder / "step-000030"
    monkeypatch.setattr("lift_ds.storage.manifest.hash_file", fail)
    assert find_faults(path, read_manifest(path))[0].endswith(" cannot be read (Input/output error)")


def test_order_is_by_number(folder):
    make_checkpoint(folder, 1_000_010)
    make_checkpoint(folder, 999_900)
    assert find_checkpoint(folder, "auto")[0] == folder / "step-1000010"


def test_saving_the_same_step_again_replaces_it(folder):
    before = hash_file(folder / "step-000030" / "manifest.json")
    path = make_checkpoint(folder, 30)
    assert not find_faults(path, read_manifest(path))
    assert hash_file(path / "manifest.json") == before


def test_fingerprints():
    shapes = {"a": (2, 3), "b": (4,)}
    assert model_fingerprint(shapes) == model_fingerprint(dict(reversed(shapes.items())))
    assert model_fingerprint(shapes) != model_fingerprint({"a": (3, 2), "b": (4,)})
