"""Rows that are tokens already: what is read of them, and what is refused."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from lift_ds.data.order.lanes import locate
from lift_ds.data.reader import BadRowError, RowReader
from lift_ds.data.settings import ColumnsConfig
from lift_ds.data.sources import Manifest, Retry, open_sources
from lift_ds.data.sources.columnar import Parquet, list_slices
from lift_ds.data.text.chat import ChatEncoder, TooLongError

TWO_ROWS = [
    {"input_ids": [5, 6, 7, 1], "target_mask": [False, True, True, True], "filler_mask": [False, False, False, True]},
    {"input_ids": [8, 9], "target_mask": [False, True], "filler_mask": [False, False]},
]


@pytest.fixture(scope="module")
def tokenizer(tiny_dir):
    return AutoTokenizer.from_pretrained(tiny_dir)


def write_rows(path, rows):
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def make_reader(path, tokenizer, columns=None, max_length=8, truncate=False):
    encoder = ChatEncoder(tokenizer, 1, max_length, truncate=truncate)
    return RowReader(Manifest(open_sources([str(path)], 0, "train", 10)), encoder, columns)


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_two_rows(ending, tmp_path, tokenizer):
    reader = make_reader(write_rows(tmp_path / f"rows.{ending}", TWO_ROWS), tokenizer)
    assert set(reader.columns[0].named()) == {"input_ids", "target_mask", "filler_mask"}
    for document, row in zip(reader.by_sample_id(range(2)), TWO_ROWS, strict=True):
        assert document.ids.dtype == np.int64
        assert (document.response_mask.dtype, document.filler_mask.dtype) == (bool, bool)
        assert document.ids.tolist() == row["input_ids"]
        assert document.response_mask.tolist() == row["target_mask"]
        assert document.filler_mask.tolist() == row["filler_mask"]


def test_no_filler_column_means_no_filler_and_masks_may_be_numbers(tmp_path, tokenizer):
    path = write_rows(tmp_path / "rows.jsonl", [{"a": [5, 6], "b": [0, 1]}])
    (document,) = make_reader(path, tokenizer, ColumnsConfig(input_ids="a", target_mask="b")).by_sample_id([0])
    assert document.response_mask.tolist() == [False, True]
    assert not document.filler_mask.any()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"input_ids": []}, "'input_ids' must hold a list of whole numbers"),
        ({"input_ids": "5 6 7 1"}, "'input_ids' must hold a list of whole numbers"),
        ({"input_ids": [5, 6, 7, 1.5]}, "'input_ids' must hold a list of whole numbers"),
        ({"input_ids": [5, 6, [7], 1]}, "'input_ids' must hold a list of whole numbers"),
        ({"input_ids": [5, 6, 7, None]}, "'input_ids' must hold a list of whole numbers"),
        ({"input_ids": [5, 6, 7, 2048]}, "has id 2048 at place 3; the tokenizer has ids from 0 to 2047"),
        ({"input_ids": [5, -1, 7, 1]}, "has id -1 at place 1"),
        ({"target_mask": [True]}, "'target_mask' has 1 entries for 4 token ids"),
        ({"target_mask": [0, 1, 2, 1]}, "'target_mask' must hold true and false"),
        ({"target_mask": [False] * 4, "filler_mask": [False] * 4}, "'target_mask' has no target"),
        ({"filler_mask": [True, False, False, True]}, "'filler_mask' is true at place 0, which is no target"),
        ({"filler_mask": None}, "'filler_mask' must hold a list"),
    ],
)
def test_a_bad_row_is_located_and_spoils_no_other(change, problem, tmp_path, tokenizer):
    path = write_rows(tmp_path / "rows.jsonl", [TWO_ROWS[0], TWO_ROWS[0] | change, TWO_ROWS[1]])
    reader = make_reader(path, tokenizer)
    with pytest.raises(BadRowError) as caught:
        reader.document(locate(reader.manifest, 0, 1))
    assert str(caught.value).startswith(f"{path}:2: ")
    assert problem in str(caught.value)
    assert [len(each.ids) for each in reader.by_sample_id([0, 2])] == [4, 2]


def test_long_rows_are_refused_or_cut_as_texts_are(tmp_path, tokenizer):
    """12 tokens, of which the first is a prompt; then 12 of which only the last is a target."""
    rows = [
        {"input_ids": list(range(5, 17)), "target_mask": [False] + [True] * 11},
        {"input_ids": list(range(5, 17)), "target_mask": [False] * 11 + [True]},
    ]
    path = write_rows(tmp_path / "rows.parquet", rows)
    refusing, cutting = make_reader(path, tokenizer), make_reader(path, tokenizer, truncate=True)
    with pytest.raises(TooLongError, match="row 0: 12 tokens, more than data.max_length=8"):
        refusing.document(locate(refusing.manifest, 0, 0))
    cut = cutting.document(locate(cutting.manifest, 0, 0))
    assert cut.ids.tolist() == list(range(5, 13))
    assert cut.response_mask.sum() == 7
    with pytest.raises(TooLongError, match="row 1: the prompt alone has 11 tokens"):
        cutting.document(locate(cutting.manifest, 0, 1))


def test_lists_of_numbers_are_arrays_and_all_else_is_as_it_was():
    table = pa.table(
        {
            "ids": pa.chunked_array([[[1, 2], [], None], [[3]]], pa.list_(pa.int32())),
            "mask": pa.array([[True, False], None, [False], []], pa.large_list(pa.bool_())),
            "holes": [[1, None], [2], [3], [4]],
            "nested": [[{"role": "user"}], [], None, [{"role": "x"}]],
            "text": ["a", None, "c", "d"],
        }
    )
    plain, rows = table.slice(1).to_pylist(), Parquet("t", Retry()).rows(table.slice(1), 1)
    for row, values in zip(rows, plain, strict=True):
        as_lists = {
            name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in row.values.items()
        }
        assert as_lists == values
    assert isinstance(rows[2].values["ids"], np.ndarray)
    assert isinstance(rows[1].values["mask"], np.ndarray)
    assert isinstance(rows[2].values["holes"], list)
    assert [row.where for row in rows] == ["t: row 1", "t: row 2", "t: row 3"]


def test_broken_borders_are_an_error():
    values, borders = pa.array([1, 2, 3], pa.int32()), pa.array([0, 3, 1], pa.int32())
    broken = pa.Array.from_buffers(pa.list_(pa.int32()), 2, [None, borders.buffers()[1]], children=[values])
    with pytest.raises(ValueError, match="borders"):
        list_slices(broken)


def test_a_first_target_that_a_shifted_model_cannot_predict(tmp_path, tokenizer):
    path = write_rows(tmp_path / "rows.jsonl", [{"input_ids": [5, 6], "target_mask": [True, True]}])
    manifest = Manifest(open_sources([str(path)], 0, "train", 10))
    reader = RowReader(manifest, ChatEncoder(tokenizer, 1, 8, start_token_id=0), None)
    with pytest.raises(BadRowError, match=r"rows.jsonl:1: .*target at place 0.*put the start token \(id 0\)"):
        list(reader.by_sample_id([0]))
