"""The report of rows that stay hard."""

import csv
import json

import numpy as np
import pytest

from lift_ds.data.batch import Document
from lift_ds.evaluation.hardest import forgotten, rank_rows, write_hardest
from lift_ds.method.memory import BLOCK_ROWS, RowMemory
from lift_ds.models.vocabulary import load_tokenizer
from tests.conftest import REPOSITORY

HARD, EASY, UNSEEN = 3, BLOCK_ROWS + 7, 9


@pytest.fixture(scope="module")
def rows():
    """Two blocks: one row whose third token is 6 nats harder than such tokens are, one that is easier."""
    memory = RowMemory()
    for _ in range(3):
        memory.write([(EASY, 4, 8, np.arange(4), np.full(4, -0.5, np.float32))])
        memory.write([(HARD, 5, 8, np.array([0, 2]), np.array([1.0, 6.0], np.float32))])
    return rank_rows(memory)


def test_rows_are_ranked_by_their_residuals(rows):
    """Of 1 and 6 nats, each times 3 / 3.5, over two tokens and two more."""
    assert [row.sample_id for row in rows] == [HARD, EASY]
    hard, easy = rows
    assert hard.hardness == pytest.approx(7 * 3 / 3.5 / 4, rel=0.02) and easy.hardness < 0
    assert (hard.num_seen, hard.size, hard.hardest[:2]) == (2, 5, (2, 0))
    assert [row.sample_id for row in forgotten(rows, {HARD: 0.5, EASY: 0.1})] == [HARD]
    assert forgotten(rows, {}) == []


def test_the_page_shows_text_and_marks_what_is_hard(rows, tmp_path):
    tokenizer = load_tokenizer(REPOSITORY / "lift_ds" / "assets" / "base")
    question, answer = tokenizer("Add 1<2.")["input_ids"], tokenizer("12345")["input_ids"][:5]
    ids = np.array(question + answer)
    response = np.arange(len(ids)) >= len(question)
    documents = {HARD: Document(ids, response, ~np.ones(len(ids), bool), HARD, 0, "a.jsonl:4")}
    places = {HARD: "a.jsonl:4", EASY: "a.jsonl:264"}
    write_hardest(tmp_path, "Hardest rows of x", rows, {EASY: -2.0}, documents, places, tokenizer)
    found = list(csv.DictReader((tmp_path / "hardest_rows.csv").open()))
    assert [(row["row"], row["where"], row["hardness_before"]) for row in found] == [
        (str(HARD), "a.jsonl:4", ""),
        (str(EASY), "a.jsonl:264", "-2.0"),
    ]
    first, forgot = json.loads((tmp_path / "hardest_rows.json").read_text())["sections"]
    assert first["rows"][0]["where"] == "a.jsonl:4" and ["3", True] in first["rows"][0]["answer"]
    assert forgot["rows"][0]["before"] == -2.0
    page = (tmp_path / "hardest_rows.html").read_text().replace("<wbr>", "")
    assert "Add 1&lt;2." in page and "http" not in page and "Most forgotten rows" in page
    assert "<mark>3</mark>" in page and "a.jsonl:4" in page
