import hashlib
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lift_ds.data.sources import Builtin, Manifest, open_sources
from lift_ds.data.sources.builtin import ROWS_VERSION, TEXT_VERSION

ROWS = [{"prompt": f"question {number}", "response": f"answer {number}"} for number in range(700)]


def write_jsonl(path, rows=ROWS):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def write_parquet(path, rows=ROWS, row_group_size=100):
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=row_group_size)
    return str(path)


def write_list(path, rows=ROWS):
    path.write_text(json.dumps(rows))
    return str(path)


def manifest_of(*paths):
    return Manifest(open_sources(list(paths), 0, "train", 10))


def all_rows(manifest):
    return [row.values for chunk in range(len(manifest.chunks)) for row in manifest.read(chunk)]


@pytest.mark.parametrize(
    ("write", "name", "num_chunks"),
    [(write_jsonl, "rows.jsonl", 3), (write_parquet, "rows.parquet", 7), (write_list, "rows.json", 1)],
)
def test_every_row_once_in_order(tmp_path, write, name, num_chunks):
    manifest = manifest_of(write(tmp_path / name))
    assert len(manifest.chunks) == num_chunks
    assert manifest.num_rows == 700
    assert all_rows(manifest) == ROWS


def test_folder_glob_and_several_files(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", ROWS[:5])
    write_parquet(tmp_path / "b.parquet", ROWS[5:9])
    (tmp_path / "notes.md").write_text("not data")
    assert all_rows(manifest_of(str(tmp_path))) == ROWS[:9]
    assert all_rows(manifest_of(str(tmp_path / "*.jsonl"))) == ROWS[:5]
    assert all_rows(manifest_of(str(tmp_path / "b.parquet"), str(tmp_path / "a.jsonl"))) == ROWS[5:9] + ROWS[:5]


def test_lines_are_counted_through_blank_ones_and_chunks(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(["", json.dumps({"a": 1}), "", *[json.dumps({"a": n}) for n in range(2, 600)]]))
    manifest = manifest_of(str(path))
    rows = [row for chunk in range(len(manifest.chunks)) for row in manifest.read(chunk)]
    assert [row.values["a"] for row in rows] == list(range(1, 600))
    assert rows[0].where == f"{path}:2"
    assert rows[-1].where == f"{path}:601"


def test_digest_changes_with_the_rows(tmp_path):
    before = manifest_of(write_jsonl(tmp_path / "rows.jsonl")).digest
    assert manifest_of(str(tmp_path / "rows.jsonl")).digest == before
    write_jsonl(tmp_path / "rows.jsonl", ROWS[:-1])
    assert manifest_of(str(tmp_path / "rows.jsonl")).digest != before


def test_malformed_line_names_file_and_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"a": \n[1]\n')
    good, malformed, no_object = manifest_of(str(path)).read(0)
    assert (good.values, good.problem) == ({"a": 1}, None)
    assert (malformed.where, malformed.values) == (f"{path}:2", {})
    assert malformed.problem.startswith("not JSON")
    assert no_object.problem.startswith("a list, not an object")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.jsonl", b"", "empty.jsonl is empty"),
        ("blank.jsonl", b"\n\n", "no rows in"),
        ("list.json", b"[]", "no rows in"),
        ("object.json", b"{}", "must hold a list of objects"),
        ("bad.json", b"[1, ", "not JSON"),
        ("cut.parquet", b"PAR1 cut short", "cannot be read as parquet"),
        ("text.txt", b"hello", "unknown ending"),
    ],
)
def test_unusable_files(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        manifest_of(str(tmp_path / name))


def test_missing_file():
    with pytest.raises(ValueError, match="no such file"):
        manifest_of("/nowhere/rows.jsonl")


def builtin_rows(name, count):
    rows = Builtin(f"builtin:{name}", 0, "train", count)
    return [row.values for chunk in rows.scan().chunks for row in rows.read(chunk)]


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        # computed when `reasoning` was this and no more
        ("reasoning/top", "b115c479a1d0de7b59d812e7dd3650652a74a6baa91c343ea8f931f19915c15f"),
        ("reasoning", "97177a783441afe6cdda55e3e6b848ce822d5e8fe4931539a5996337d34913dd"),  # with ROWS_VERSION 2
        ("pretraining", "028bcc480d0b49d030175c9b54490e8bb0051461f48e82e88d970987875325e7"),  # with TEXT_VERSION 4
        ("instructions", "8b87f9fcdbb5b70a0a8c258f22126b6fbf104d0b4f1cbb267265d6b3f0f7f575"),
    ],
)
def test_builtin_rows_stay_the_same(name, digest):
    """Other rows under the same name need another version, so that runs that go on are told."""
    assert (ROWS_VERSION, TEXT_VERSION) == (2, 4)
    assert hashlib.sha256(repr(builtin_rows(name, 600)).encode()).hexdigest() == digest


@pytest.mark.parametrize("name", ["reasoning", "reasoning/top", "sudoku", "countdown/1"])
def test_shuffled_rows_answer_another_question_of_the_same_level(name):
    values, mixed = builtin_rows(name, 40), builtin_rows(f"{name}-shuffled", 40)
    assert [row["prompt"] for row in mixed] == [row["prompt"] for row in values]
    assert sum(one["response"] != other["response"] for one, other in zip(mixed, values, strict=True)) >= 38
    # a response has as many lines as its level's worked answers
    assert [row["response"].count("\n") for row in mixed if "Reach" in row["prompt"]] == [
        row["response"].count("\n") for row in values if "Reach" in row["prompt"]
    ]


def test_unknown_builtin():
    for name in ("nothing", "sudoku/5", "pretraining-shuffled"):
        with pytest.raises(ValueError, match="allowed: .*builtin:reasoning/top.*, the tasks also with -shuffled"):
            Builtin(f"builtin:{name}", 0, "train", 9)
