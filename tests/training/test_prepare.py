"""What a run is told before it starts."""

import json
import shutil

import pytest

from lift_ds.config.run import RunConfig
from lift_ds.models.settings import ModelConfig
from lift_ds.training.inputs import prepare
from tests.conftest import SMALL, launch_train


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
