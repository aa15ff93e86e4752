"""How the built-in base is made: `make base`, with few steps."""

import json
import os
import subprocess
from filecmp import cmp

import pytest

from tests.conftest import BASE, REPOSITORY

pytestmark = [pytest.mark.slow, pytest.mark.distributed]
STEPS = "optim.steps=2 optim.global_batch=4 data.builtin_rows=2000 eval.rows=4 checkpoint.save_every=1"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Made in full, and once more with nothing to do."""
    folder = tmp_path_factory.mktemp("made") / "base"
    command = ["make", "base", f"BASE={folder}", "SIZE=--width 64 --layers 2", f"ARGS={STEPS}"]
    first, again = (
        subprocess.run(command, cwd=REPOSITORY, env=os.environ, text=True, capture_output=True, check=True)
        for _ in range(2)
    )
    assert "launchers/train.py" in first.stdout and "launchers/train.py" not in again.stdout
    return folder


def test_both_stages(made):
    config = json.loads((made / "instructed" / "bf16" / "config.json").read_text())
    assert (config["d_model"], config["n_layers"]) == (64, 2)
    for stage in ("pretrained", "instructed"):
        lines = (made / stage / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines if '"kind": "step"' in line] == [1, 2]


def test_the_tokenizer_is_the_one_that_ships(made):
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert cmp(made / "new" / name, BASE / name, shallow=False), name
