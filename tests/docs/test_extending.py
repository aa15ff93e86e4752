"""What docs/extending.md adds from outside the package works as what is inside does."""

import json
import re

import pytest
import torch
from safetensors.torch import save_file

from lift_ds import load_pretrained, sft_loss
from lift_ds.cli import score
from lift_ds.data.sources import FILE_KINDS, open_sources
from lift_ds.evaluation.tasks import EVAL_TASKS
from lift_ds.models.families import FAMILIES
from lift_ds.models.weights import NewWeights
from lift_ds.objectives import OBJECTIVES
from tests.conftest import REPOSITORY

BLOCKS = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs" / "extending.md").read_text(), re.DOTALL)


@pytest.fixture
def added():
    """Runs the block that has a word, and takes its row away again."""
    tables = (OBJECTIVES, FAMILIES, FILE_KINDS, EVAL_TASKS)
    before = [dict(table) for table in tables]

    def run(word):
        (block,) = [block for block in BLOCKS if word in block]
        names = {"__name__": "added"}
        exec(block, names)
        return names

    yield run
    for table, kept in zip(tables, before, strict=True):
        table.clear()
        table.update(kept)


def test_each_table_has_its_example():
    assert len(BLOCKS) == 4
    assert "OBJECTIVES[" in BLOCKS[0]  # tests/objectives/test_objectives.py trains with it


def test_a_family(added, tmp_path):
    names = added("register(FAMILY)")
    fields = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    source = NewWeights(names["PlainConfig"](**fields, vocab_size=50), 0)
    (tmp_path / "config.json").write_text(json.dumps(fields | {"vocab_size": 50, "model_type": "plain_llama"}))
    save_file({name: source.tensor(name) for name in source.shapes()}, tmp_path / "model.safetensors")
    model, _ = load_pretrained(tmp_path)
    assert type(model) is names["PlainModel"]
    assert model.config.mask_token_id == 49
    ids = torch.tensor([[5, 6, 7, 8]])
    loss = sft_loss(model, ids, torch.ones_like(ids, dtype=torch.bool), torch.ones(1), num_targets=4)
    assert loss.item() == pytest.approx(3.912, abs=0.1)  # log 50: nothing is learned yet


def test_a_kind_of_data(added, tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('prompt,response\n"Add 2, 2.",4\nAdd 3 and 3.,6\n')
    with pytest.raises(ValueError, match="unknown ending"):
        open_sources([str(path)], 0, "train", 1)
    added('FILE_KINDS[".csv"]')
    (source,) = open_sources([str(path)], 0, "train", 1)
    (chunk,) = source.scan().chunks
    rows = source.read(chunk)
    assert [(row.values["prompt"], row.values["response"]) for row in rows] == [
        ("Add 2, 2.", "4"),
        ("Add 3 and 3.", "6"),
    ]
    assert rows[1].where == f"{path}:3"


def test_an_evaluation_task(added, tmp_path):
    added("EVAL_TASKS[")
    rows = [
        {"question": f"Is {number} even or odd?", "generation": "<answer>even</answer>", "ground_truth": parity}
        for number, parity in ((4, "even"), (7, "odd"))
    ]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = [str(tmp_path / "answers.jsonl"), "--task", "parity", "--scorer", "strict"]
    score.main([*flags, "--json", str(tmp_path / "score.json")])
    assert json.loads((tmp_path / "score.json").read_text())["solved"] == 1
