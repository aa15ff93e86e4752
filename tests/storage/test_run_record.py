"""`run.json`: what is written, what is read, and that every reader refuses what a later version wrote."""

import json

import pytest

from lift_ds.cli import learnability, train
from lift_ds.config.run import RunConfig
from lift_ds.export import adapters, inspection
from lift_ds.objectives import OBJECTIVES
from lift_ds.storage.run_record import FORMAT, NewerFormatError, read_run, refuse_newer_run, upgrade_run, write_run

RECORD = {"run": {"model": {"path": "builtin:base"}}, "deepspeed": {}, "world_size": 2}
NEWER = "run.json: its format is 3, and the newest that this version of lift_ds reads is 2; update lift_ds."


def write(folder, content):
    (folder / "run.json").write_text(json.dumps(content))


def test_what_is_written_is_read(tmp_path):
    write_run(tmp_path, RECORD)
    assert json.loads((tmp_path / "run.json").read_text()) == {"format": 2, **RECORD}
    assert read_run(tmp_path) == {"format": 2, **RECORD}


@pytest.mark.parametrize("number", [{}, {"format": 1}])
def test_format_1_is_brought_up(tmp_path, number):
    write(tmp_path, RECORD | number)
    assert read_run(tmp_path) == RECORD | {"format": FORMAT} == upgrade_run(RECORD, 1)


@pytest.mark.parametrize("method", list(OBJECTIVES))
def test_format_1_held_the_options_of_all_objectives(tmp_path, method):
    """Those that the method never read are left out; what is left is a config of today."""
    common = {"token_weight": "none", "cart_p": 0.1, "time_scaling": True, "t_min": 0.001, "normalizer": "reference"}
    optional = {"policy": "time", "scoring": "exact", "refresh_share": 0.125, "warm_start_steps": 50, "rho": "code",
                "scoring_precision": "model", "complementary": False, "random_weight": 3.0}  # fmt: skip
    write(tmp_path, {"run": {"objective": {"method": method, **common, **optional}}})
    objective = read_run(tmp_path)["run"]["objective"]
    assert objective.items() >= common.items()
    assert set(objective) == set(RunConfig(objective=objective).objective.model_dump()) & {*common, *optional, "method"}


@pytest.mark.parametrize("objective", [[], None, {"method": []}, {"method": "own", "policy": "time"}])
def test_an_objective_of_format_1_that_is_not_known_stays(tmp_path, objective):
    """What it is made of is for the config to judge."""
    write(tmp_path, {"run": {"objective": objective}})
    assert read_run(tmp_path)["run"] == {"objective": objective}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (RECORD | {"format": 0}, "format=0 is no whole number from 1"),
        (RECORD | {"format": "2"}, "format='2' is no whole number from 1"),
        ({"deepspeed": {}}, "it has no entry 'run'"),
        ([], "it is no mapping"),
    ],
)
def test_what_is_no_record(tmp_path, content, reason):
    write(tmp_path, content)
    with pytest.raises(ValueError, match=rf"^{tmp_path}/run.json: no readable record of a run: .*{reason}"):
        read_run(tmp_path)
    refuse_newer_run(tmp_path)  # resuming writes it anew


def test_none_at_all(tmp_path):
    with pytest.raises(ValueError, match=r"no readable record of a run: .*No such file"):
        read_run(tmp_path)
    refuse_newer_run(tmp_path)


@pytest.mark.parametrize(
    "read",
    [
        read_run,
        refuse_newer_run,
        inspection.describe_own,
        lambda folder: adapters.adapter_settings(folder, []),
        lambda folder: adapters.described_adapters(folder, folder),
    ],
)
def test_a_newer_one_is_refused_by_name(tmp_path, read):
    write(tmp_path, {"format": FORMAT + 1, "runs": "of another kind"})
    with pytest.raises(NewerFormatError, match=rf"^{tmp_path}/{NEWER}$"):
        read(tmp_path)


@pytest.mark.parametrize("more", [[], ["--buffers"]])
def test_learnability_refuses_a_newer_one(tmp_path, capsys, more):
    write(tmp_path, RECORD | {"format": FORMAT + 1})
    with pytest.raises(SystemExit) as stopped:
        learnability.main([str(tmp_path), *more])
    assert stopped.value.code == 2
    assert f"error: {tmp_path}/{NEWER}" in capsys.readouterr().err


def test_training_leaves_a_newer_one_as_it_is(tmp_path, capsys):
    """The run's own record would replace it, before its checkpoints are looked at."""
    write(tmp_path, RECORD | {"format": FORMAT + 1})
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises(SystemExit) as stopped:
        train.main(["--deepspeed", "ds_configs/zero3.json", "--output", str(tmp_path), "--resume", "auto"])
    assert stopped.value.code == 2
    assert f"{tmp_path}/{NEWER}" in capsys.readouterr().err
    assert (tmp_path / "run.json").read_bytes() == before
