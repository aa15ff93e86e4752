"""Every row of docs/data.md, as a run sees it."""

import json
import re

import pytest
from transformers import AutoTokenizer

from lift_ds.config.loading import load_run_config
from lift_ds.data.sources import open_groups
from lift_ds.data.survey.display import marked_text
from lift_ds.models.families import read_config
from lift_ds.training.inputs import make_encoder
from lift_ds.training.readers import open_reader
from tests.conftest import BASE, REPOSITORY

BLOCK = re.compile(r"^```row\n(.+)\n(.+)\n(.+)\n```$", re.MULTILINE)
BLOCKS = BLOCK.findall((REPOSITORY / "docs" / "data.md").read_text(encoding="utf-8"))


def test_every_block_is_read():
    assert len(BLOCKS) == (REPOSITORY / "docs" / "data.md").read_text(encoding="utf-8").count("```row")


@pytest.mark.parametrize(("row", "columns", "seen"), BLOCKS)
def test_a_row_is_seen_as_the_page_says(row, columns, seen, tmp_path):
    json.loads(row)
    path = tmp_path / "rows.jsonl"
    path.write_text(row + "\n", encoding="utf-8")
    overrides = columns.split() if columns.startswith("data.") else []
    run, problems = load_run_config(None, [f"data.path={path}", *overrides])
    assert not problems
    tokenizer, config = AutoTokenizer.from_pretrained(BASE), read_config(BASE)
    groups = open_groups(run.data.source_list(), 0, "train", 1)
    reader = open_reader(run.data, make_encoder(run.data, tokenizer, config), groups)
    if not overrides:
        assert ", ".join(f"{name}: {column}" for name, column in reader.columns[0].named().items()) == columns
    (document,) = reader.by_sample_id([0])
    if reader.columns[0].input_ids is not None:
        pairs = zip(document.ids, document.response_mask, strict=True)
        ids = [f"«{token_id}»" if is_learned else f"{token_id}" for token_id, is_learned in pairs]
        assert "ids " + " ".join(ids).replace("» «", " ") == seen
        return
    text = marked_text(document, tokenizer).removeprefix("<|startoftext|>")
    text = re.sub(r"<\|start_header_id\|>(\w+)<\|end_header_id\|>\n\n", r"[\1]", text)
    assert text.replace("\n", "⏎") == seen
