"""What a run is told before it starts."""

import json
import shutil
import sys

import pytest

from lift_ds.cli import train
from lift_ds.config.run import RunConfig
from lift_ds.data.settings import DataConfig, SourceConfig
from lift_ds.evaluation.settings import EvalConfig
from lift_ds.models.settings import ModelConfig
from lift_ds.training import run_files
from lift_ds.training.inputs import prepare
from tests.conftest import SMALL, launch_train, run


def test_a_missing_tokenizer(tiny_dir, tmp_path):
    shutil.copyfile(tiny_dir / "config.json", tmp_path / "config.json")
    with pytest.raises(ValueError, match="no tokenizer; training needs one"):
        prepare(RunConfig(model=ModelConfig(path=str(tmp_path), from_scratch=True)))


def test_a_model_with_fewer_rows_than_its_tokenizer(tiny_dir, tmp_path):
    shutil.copytree(tiny_dir, tmp_path / "model")
    config = json.loads((tiny_dir / "config.json").read_text())
    rows = config["vocab_size"] // 2
    config |= {"vocab_size": rows, "embedding_size": rows, "mask_token_id": 5}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"{2 * rows} tokens for {rows} embedding rows"):
        prepare(RunConfig(model=ModelConfig(path=str(tmp_path / "model"), from_scratch=True)))


def test_files_are_found_once(tiny_dir, tmp_path, monkeypatch, capsys):
    """Two training files and a held-out one are three listings, and the model's config is read once."""
    calls = []
    for name in ("open_groups", "read_config"):
        action = getattr(run_files, name)
        counted = lambda *given, name=name, action=action: calls.append(name) or action(*given)  # noqa: E731
        monkeypatch.setattr(run_files, name, counted)
    for name in ("a", "b", "held"):
        (tmp_path / f"{name}.jsonl").write_text('{"prompt": "why", "response": "so"}\n' * 9)
    arguments = ["--deepspeed", "ds_configs/zero3.json", "--dry-run", "--model", str(tiny_dir)]
    arguments += ["--data", str(tmp_path / "a.jsonl"), "--data", str(tmp_path / "b.jsonl"), "eval.rows=2"]
    train.main([*arguments, f"eval.path={tmp_path / 'held.jsonl'}", f"output={tmp_path / 'run'}"])
    assert sorted(calls) == ["open_groups"] * 3 + ["read_config"]
    assert "18 rows, 18 checked" in capsys.readouterr().out


def test_what_is_missing_is_said_at_once_and_before_deepspeed_is_loaded(tmp_path):
    path = tmp_path / "zero.json"
    zero = {"stage": 3, "reduce_bucket_size": "auto"}
    path.write_text(json.dumps({"zero_optimization": zero, "train_batch_size": 7}))
    (tmp_path / "metrics.jsonl").write_text("")
    code = "import atexit, sys; atexit.register(lambda: print('deepspeed' in sys.modules)); "
    code += "from lift_ds.cli.train import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", code, "--deepspeed", str(path), "--model", "no/model", f"output={tmp_path}"]
    command += ["data.sources=[{path: [a.jsonl, b.txt], weight: 5e-1}, {path: c, weight: 1}]", "eval.path=d.jsonl"]
    done = run(command, check=False)
    assert done.returncode == 2
    for part in (
        "7 problems",
        "model.path='no/model'",
        *(f"'{name}': no such file" for name in ("a.jsonl", "b.txt", "c", "d.jsonl")),
        "holds a run already",
        "train_batch_size=7 but optim.global_batch gives 8",
    ):
        assert part in done.stdout
    assert done.stdout.endswith("False\n")


def test_sources_keep_weight_columns_and_order(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.jsonl").write_text('{"q": "why", "r": "so"}\n')
    both, one = [str(tmp_path / "b.jsonl"), str(tmp_path / "a.jsonl")], str(tmp_path / "c.jsonl")
    columns = {"prompt": "q", "response": "r"}
    mixture = [SourceConfig(path=both, weight=0.5, columns=columns), SourceConfig(path=one, weight=1.0)]
    sources = run_files.list_sources(RunConfig(data=DataConfig(sources=mixture), eval=EvalConfig(rows=0)))
    first, second = sources.training
    assert (first.name, [source.name for source in first.sources]) == (", ".join(both), both)
    assert (first.weight, first.columns.named(), second.weight, second.columns) == (0.5, columns, 1.0, None)
    assert sources.held_out is None
    builtin = run_files.list_sources(RunConfig())
    assert [source.split for group in builtin.held_out for source in group.sources] == ["test"]


@pytest.mark.slow
@pytest.mark.distributed
def test_a_place_that_cannot_be_written(tiny_dir, tmp_path):
    """A file where the run folder should be, which stops root too: one error, before a step."""
    (tmp_path / "file").write_text("mine")
    output = tmp_path / "file" / "run"
    done = launch_train(*SMALL, "--model", tiny_dir, "--output", output, num_ranks=1, check=False)
    assert done.returncode != 0
    assert "Traceback" not in done.stdout and str(output) in done.stdout.split("error")[1]
    assert (tmp_path / "file").read_text() == "mine"
