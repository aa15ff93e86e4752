"""`tools/merge_lora.py` as people run it."""

import json
import os
import resource
import subprocess
import sys

import pytest
import torch

from lift_ds import load_pretrained
from lift_ds.cli.merge_lora import main
from lift_ds.models.lora import add_adapters, peft_config, save_adapters, split_adapters
from tests.conftest import REPOSITORY, clean_environment, run


@pytest.fixture(scope="module")
def adapters(llada_dir, tmp_path_factory):
    model, _ = load_pretrained(llada_dir)
    add_adapters(model, 2, 8.0, 0.0, ["q_proj"], seed=3)
    folder = tmp_path_factory.mktemp("merge") / "adapters"
    save_adapters(split_adapters(model.state_dict())[1], folder, peft_config(2, 8.0, 0.0, ["q_proj"]))
    return folder


def test_merges_without_deepspeed(llada_dir, adapters, tmp_path):
    """B is 0: the merged model is the base."""
    output, figures = tmp_path / "out", tmp_path / "summary.json"
    arguments = [str(llada_dir), str(adapters), str(output), "--json", str(figures)]
    code = f"""
import sys
from lift_ds.cli.merge_lora import main
main({arguments!r})
assert "deepspeed" not in sys.modules
"""
    done = run([sys.executable, "-c", code])
    found = json.loads(figures.read_text())
    assert found["num_merged"] == 2 and found["ranks"] == [2] and not found["dry_run"]
    assert f"merged 2 adapters (rank 2) into {found['num_tensors']} tensors" in done.stdout
    merged, base = load_pretrained(output)[0], load_pretrained(llada_dir)[0]
    assert all(torch.equal(one, other) for one, other in zip(merged.parameters(), base.parameters(), strict=True))


def test_a_dry_run_writes_nothing(llada_dir, adapters, tmp_path, capsys):
    main([str(llada_dir), str(adapters), str(tmp_path / "out"), "--dry-run"])
    assert "would merge 2 adapters" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_errors_are_one_line(llada_dir, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main([str(llada_dir), str(tmp_path / "none"), str(tmp_path / "out")])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'none' / 'adapter_config.json'} is missing")


def test_a_write_that_fails_leaves_nothing(llada_dir, adapters, tmp_path, capsys):
    """A limit on the size of files stands for a disk that turns out to be full in the middle."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(SystemExit):
            main([str(llada_dir), str(adapters), str(tmp_path / "out")])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "[Errno 27] File too large" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_killed_merge_leaves_nothing_under_the_final_name(llada_dir, adapters, tmp_path):
    """SIGKILL while the config is written, which waits for ever: what is left has another name, and is in no way."""
    output = tmp_path / "out"
    code = f"""
import sys, time
from lift_ds.cli import merge_lora
from lift_ds.export import merge
merge.finish_config = lambda *_: (print("stands", flush=True), time.sleep(600))
merge_lora.main({[str(llada_dir), str(adapters), str(output)]!r})
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY, env=clean_environment()
    )
    assert process.stdout.readline() == "stands\n"
    process.kill()
    process.wait()
    assert [path.name for path in tmp_path.iterdir()] == [f".writing-out-{process.pid}"]
    main([str(llada_dir), str(adapters), str(output)])
    assert load_pretrained(output)


def test_a_place_that_cannot_be_written(llada_dir, adapters, tmp_path, capsys):
    """A file where a folder should be, also for root; a read-only folder for everybody else."""
    (tmp_path / "file").write_text("mine")
    (tmp_path / "closed").mkdir(mode=0o555)
    places = [tmp_path / "file"] if os.geteuid() == 0 else [tmp_path / "file", tmp_path / "closed"]
    for place in places:
        with pytest.raises(SystemExit):
            main([str(llada_dir), str(adapters), str(place / "out"), "--dry-run"])
        assert f"error: {place} cannot be written" in capsys.readouterr().err
