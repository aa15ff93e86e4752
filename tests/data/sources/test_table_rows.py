"""Columns of every Arrow type give the values that JSON would, or a bad row that says why."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lift_ds.data.sources import Manifest, open_sources

TEXTS = ["ä a", "b", None]
MESSAGES = [[{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]] * 2
TURN = pa.struct([("role", pa.string()), ("content", pa.string())])
OTHER_TURN = pa.struct([("role", pa.dictionary(pa.int32(), pa.string())), ("content", pa.large_string())])
BYTES_TURN = pa.struct([("role", pa.binary()), ("content", pa.large_binary())])
AS_BYTES = [[{key: text.encode() for key, text in turn.items()} for turn in turns] for turns in MESSAGES]
MAPS = [[[("role", turn["role"]), ("content", turn["content"])] for turn in turns] for turns in MESSAGES]
COLUMNS = {
    "dictionary": (pa.array(TEXTS).dictionary_encode(), TEXTS),
    "large_string": (pa.array(TEXTS, pa.large_string()), TEXTS),
    "string_view": (pa.array(TEXTS, pa.string_view()), TEXTS),
    "binary": (pa.array([text and text.encode() for text in TEXTS]), TEXTS),
    "binary_view": (pa.array([text and text.encode() for text in TEXTS], pa.binary_view()), TEXTS),
    "bytes that are no text": (pa.array([b"\xff\xd8", None]), [b"\xff\xd8", None]),
    "list": (pa.array(MESSAGES, pa.list_(TURN)), MESSAGES),
    "large_list": (pa.array(MESSAGES, pa.large_list(TURN)), MESSAGES),
    "list_view": (pa.array(MESSAGES, pa.list_view(TURN)), MESSAGES),
    "large_list_view": (pa.array(MESSAGES, pa.large_list_view(TURN)), MESSAGES),
    "fixed_size_list": (pa.array(MESSAGES, pa.list_(TURN, 2)), MESSAGES),
    "dictionary in a struct": (pa.array(MESSAGES, pa.list_(OTHER_TURN)), MESSAGES),
    "binary in a struct": (pa.array(AS_BYTES, pa.list_(BYTES_TURN)), MESSAGES),
    "struct in a dictionary": (
        pa.DictionaryArray.from_arrays(pa.array([1, 0]), pa.array([{"a": "x"}, {"a": "y"}])),
        [{"a": "y"}, {"a": "x"}],
    ),
    "map": (
        pa.array([[("a", "x"), ("b", "y")], None], pa.map_(pa.string(), pa.string())),
        [{"a": "x", "b": "y"}, None],
    ),
    "list of maps": (pa.array(MAPS, pa.list_(pa.map_(pa.string(), pa.binary()))), MESSAGES),
    "ids": (pa.array([[1, 2], [3]], pa.list_(pa.int32())), [[1, 2], [3]]),
    "ids of fixed size": (pa.array([[1, 2], [3, 4]], pa.list_(pa.int32(), 2)), [[1, 2], [3, 4]]),
    "ids in views": (pa.array([[1, 2], [3]], pa.list_view(pa.int32())), [[1, 2], [3]]),
}


def read_rows(path):
    manifest = Manifest(open_sources([str(path)], 0, "train", 1))
    return [row for chunk in range(len(manifest.chunks)) for row in manifest.read(chunk)]


def write_feather(path, table):
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)


def as_lists(value):
    return value.tolist() if hasattr(value, "tolist") else value


@pytest.mark.parametrize("kind", COLUMNS)
def test_values_are_those_of_json(tmp_path, kind):
    array, expected = COLUMNS[kind]
    table = pa.table({"column": array})
    write_feather(tmp_path / "rows.feather", table)
    assert [as_lists(row.values["column"]) for row in read_rows(tmp_path / "rows.feather")] == expected
    if kind == "struct in a dictionary":
        return  # parquet has no such thing
    pq.write_table(table, tmp_path / "rows.parquet")
    assert [as_lists(row.values["column"]) for row in read_rows(tmp_path / "rows.parquet")] == expected


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        (
            pa.table({"column": pa.array([[("a", "x"), ("a", "y")]], pa.map_(pa.string(), pa.string()))}),
            r"a map has a key twice; its keys are \['a', 'a'\]",
        ),
        (
            pa.table({"column": pa.array([[([1], 2)]], pa.map_(pa.list_(pa.int32()), pa.int32()))}),
            "a map whose keys are list.*only plain keys",
        ),
        (pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["prompt", "prompt"]), "named 'prompt'"),
    ],
)
def test_values_that_would_be_lost_spoil_their_row(tmp_path, table, problem):
    write_feather(tmp_path / "rows.feather", table)
    [row] = read_rows(tmp_path / "rows.feather")
    assert row.values == {}
    with pytest.raises(ValueError, match=problem):
        raise ValueError(row.problem)
