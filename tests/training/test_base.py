"""How the built-in base is made: `make base`, with few steps."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from tests.conftest import REPOSITORY

BASE = REPOSITORY / "lift_ds" / "assets" / "base"
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


def test_tokens_that_stand_alone(made):
    """Digits, brackets, line breaks and answer tags are one token each, whatever is beside them."""
    for folder in (made / "new", made / "instructed" / "bf16"):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        text = "sm(12,max(3,4))=6\n\n<answer>10</answer>"
        pieces = ["sm", *"(12,", "max", *"(3,4))=6\n\n", "<answer>", *"10", "</answer>"]
        assert [tokenizer.decode([token]) for token in tokenizer(text).input_ids] == pieces
        assert "<answer>" not in tokenizer.all_special_tokens


def test_a_width_that_heads_do_not_divide():
    command = [sys.executable, "tools/make_base_tokenizer.py", "unused", "--width", "100"]
    done = subprocess.run(command, cwd=REPOSITORY, text=True, capture_output=True)
    assert done.returncode == 2 and "--width 100: a multiple of 32" in done.stderr


def test_weights_of_an_earlier_base(tmp_path):
    """Tokens that both know keep their rows; one that is several in the earlier base has their mean; layers stay."""
    command = [sys.executable, "tools/make_base_tokenizer.py", str(tmp_path / "new"), "--weights-from", str(BASE)]
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)
    old, new = (AutoTokenizer.from_pretrained(folder) for folder in (BASE, tmp_path / "new"))
    before, after = (load_file(folder / "model.safetensors") for folder in (BASE, tmp_path / "new"))
    assert before.keys() == after.keys()
    for name, tensor in after.items():
        if tensor.shape[0] != len(new):
            assert torch.equal(tensor, before[name].float())
            continue
        for text in ("7", "(", "<|mdm_mask|>", "Ġhas", "<answer>"):
            pieces = old.convert_ids_to_tokens(range(len(old)))
            token = new.convert_tokens_to_ids(text)
            wanted = [old.convert_tokens_to_ids(text)] if text in pieces else old(text)["input_ids"]
            torch.testing.assert_close(tensor[token], before[name][wanted].float().mean(0))
    wide = [*command[:2], str(tmp_path / "wide"), "--width", "64", *command[3:]]
    done = subprocess.run(wide, cwd=REPOSITORY, text=True, capture_output=True)
    assert done.returncode == 2 and "other shapes than the new model's" in done.stderr
