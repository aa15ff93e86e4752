"""Numbered rows: groups, content hashes, and indexes that are kept."""

import json
import os
import pickle
import shutil

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from lift_ds.data.settings import ColumnsConfig, SourceConfig
from lift_ds.data.sources import Manifest, check_same_files, open_groups, open_sources

NUM_ROWS = 700


def write_lines(path, count=NUM_ROWS):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"prompt": f"q {n}", "response": f"a {n}"}) + "\n" for n in range(count)))
    return path


def manifest_of(*paths, cache_dir=None):
    return Manifest(open_sources(list(map(str, paths)), 0, "train", 10), cache_dir)


def groups_of(*configs):
    return Manifest(open_groups(list(configs), 0, "train", 10))


def test_what_another_process_has_found(tmp_path):
    """The same manifest from its indexes, in another folder and without a look at the files; places are one's own."""
    groups = {}
    for folder in ("one", "two"):
        config = SourceConfig(path=str(write_lines(tmp_path / folder / "a.jsonl")))
        groups[folder] = open_groups([config, SourceConfig(path="builtin:sudoku")], 0, "train", 10)
    first = Manifest(groups["one"])
    found = pickle.loads(pickle.dumps(first.found))
    check_same_files(groups["two"], found)
    (tmp_path / "two" / "a.jsonl").rename(tmp_path / "away")
    second = Manifest(groups["two"], found=found)
    assert (second.digest, second.first_ids, second.groups[1]) == (first.digest, first.first_ids, first.groups[1])
    assert second.files == first.files
    (tmp_path / "away").rename(tmp_path / "two" / "a.jsonl")
    for chunk in range(len(first.chunks)):
        here, there = first.read(chunk), second.read(chunk)
        assert [row.values for row in here] == [row.values for row in there]
        assert [row.where.replace("/one/", "/two/") for row in here] == [row.where for row in there]


def test_other_files_than_rank_0_has(tmp_path):
    """A row more, or a file more."""
    lines = [write_lines(tmp_path / folder / "a.jsonl", count) for folder, count in (("one", 9), ("two", 10))]
    one, two = (open_groups([SourceConfig(path=str(path.parent))], 0, "train", 10) for path in lines)
    found = Manifest(one).found
    sizes = [path.stat().st_size for path in lines]
    message = rf"\(1\): a.jsonl \({sizes[1]} bytes\) here, a.jsonl \({sizes[0]} bytes\) there; put the same files"
    with pytest.raises(ValueError, match=message):
        check_same_files(two, found)
    write_lines(tmp_path / "one" / "b.jsonl", 9)
    more = open_groups([SourceConfig(path=str(tmp_path / "one"))], 0, "train", 10)
    with pytest.raises(ValueError, match=rf"\(1\): b.jsonl \({sizes[0]} bytes\) here, no file there"):
        check_same_files(more, found)


def test_one_group_without_a_weight(tmp_path):
    (group,) = manifest_of(write_lines(tmp_path / "a.jsonl"), write_lines(tmp_path / "b.jsonl", 10)).groups
    assert (group.weight, group.first_chunk, group.num_chunks, group.num_rows) == (None, 0, 4, 710)


def test_groups_follow_each_other(tmp_path):
    write_lines(tmp_path / "a.jsonl")
    write_lines(tmp_path / "b.jsonl", 10)
    manifest = groups_of(
        SourceConfig(path=[str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")], weight=3.0),
        SourceConfig(path="builtin:sudoku", weight=1.0, columns=ColumnsConfig(text="prompt")),
    )
    first, second = manifest.groups
    assert first.name == f"{tmp_path}/a.jsonl, {tmp_path}/b.jsonl"
    assert (first.weight, first.first_chunk, first.num_chunks, first.num_rows, first.columns) == (3.0, 0, 4, 710, None)
    assert (second.name, second.weight, second.first_chunk, second.num_chunks) == ("builtin:sudoku", 1.0, 4, 1)
    assert (second.num_rows, second.columns) == (10, ColumnsConfig(text="prompt"))
    assert manifest.first_ids[second.first_chunk] == 710
    assert manifest.num_rows == 720


def test_a_group_without_rows_is_named(tmp_path):
    write_lines(tmp_path / "a.jsonl")
    (tmp_path / "blank.jsonl").write_text("\n\n")
    with pytest.raises(ValueError, match=r"no rows in .*blank.jsonl; at least one"):
        groups_of(SourceConfig(path=str(tmp_path / "a.jsonl")), SourceConfig(path=str(tmp_path / "blank.jsonl")))


def test_the_folder_is_no_part_of_the_digest(tmp_path):
    write_lines(tmp_path / "a" / "rows.jsonl")
    before = manifest_of(tmp_path / "a")
    shutil.move(tmp_path / "a", tmp_path / "b")
    after = manifest_of(tmp_path / "b")
    assert after.digest == before.digest
    assert after.find_changes(json.loads(json.dumps(before.state()))) == []


def edit_lines(path):
    path.write_text(path.read_text().replace('a 17"', 'a 18"'))


def edit_parquet(path):
    table = pq.read_table(path).to_pydict()
    pq.write_table(pa.table(table | {"n": [*table["n"][:-1], 50]}), path, compression="none")


def edit_feather(path):
    table = feather.read_table(path).to_pydict()
    feather.write_feather(pa.table(table | {"n": [*table["n"][:-1], 50]}), str(path), compression="uncompressed")


@pytest.mark.parametrize(
    ("name", "edit"), [("rows.jsonl", edit_lines), ("rows.parquet", edit_parquet), ("rows.feather", edit_feather)]
)
def test_an_edit_of_the_same_size_is_noticed(tmp_path, name, edit):
    path = tmp_path / name
    numbers = pa.table({"n": list(range(50))})
    if name == "rows.jsonl":
        write_lines(path)
    elif name == "rows.parquet":
        pq.write_table(numbers, path, compression="none")
    else:
        feather.write_feather(numbers, str(path), compression="uncompressed")
    before, size = manifest_of(path), path.stat().st_size
    edit(path)
    after = manifest_of(path)
    assert path.stat().st_size == size
    assert after.chunks == before.chunks
    assert after.digest != before.digest
    assert after.find_changes(before.state()) == [f"{name} has changed"]


def test_changes_are_named(tmp_path):
    for name in ("a", "b", "c"):
        write_lines(tmp_path / f"{name}.jsonl", 5 + ord(name))
    state = manifest_of(tmp_path).state()
    (tmp_path / "a.jsonl").unlink()
    write_lines(tmp_path / "b.jsonl", 9)
    write_lines(tmp_path / "d.jsonl", 9)
    assert manifest_of(tmp_path).find_changes(state) == [
        "a.jsonl is missing", "d.jsonl is new", "b.jsonl has changed",
    ]  # fmt: skip


def test_another_order_is_a_change(tmp_path):
    one, other = write_lines(tmp_path / "a.jsonl", 5), write_lines(tmp_path / "b.jsonl", 6)
    state = manifest_of(one, other).state()
    assert manifest_of(other, one).find_changes(state) == [
        "the same files are in another order, or cut into other chunks"
    ]


def test_files_of_the_same_name_are_told_apart(tmp_path):
    for number, folder in enumerate(("a", "b")):
        write_lines(tmp_path / folder / "rows.jsonl", 5 + number)
    state = manifest_of(tmp_path).state()
    assert list(state["files"]) == ["rows.jsonl", "rows.jsonl (2)"]
    write_lines(tmp_path / "b" / "rows.jsonl", 9)
    assert manifest_of(tmp_path).find_changes(state) == ["rows.jsonl (2) has changed"]


def poison(path):
    """Other content of the same size and age: only a kept index can still describe what was there."""
    stat = path.stat()
    path.write_bytes(b"\n" * stat.st_size)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_a_restart_does_not_scan(tmp_path):
    path, cache_dir = write_lines(tmp_path / "rows.jsonl"), tmp_path / "run" / "index"
    first = manifest_of(path, cache_dir=cache_dir)
    assert not cache_dir.exists()
    first.save_indexes()
    poison(path)
    again = manifest_of(path, cache_dir=cache_dir)
    assert (again.chunks, again.state()) == (first.chunks, first.state())
    with pytest.raises(ValueError, match="no rows"):
        manifest_of(path)
    assert [file.suffix for file in cache_dir.iterdir()] == [".json"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"version": 1}', b'{"version": 0, "chunks": []}', b"\xff"])
def test_an_unreadable_index_is_ignored(tmp_path, content):
    path, cache_dir = write_lines(tmp_path / "rows.jsonl"), tmp_path / "index"
    manifest_of(path, cache_dir=cache_dir).save_indexes()
    (kept,) = cache_dir.iterdir()
    kept.write_bytes(content)
    again = manifest_of(path, cache_dir=cache_dir)
    assert again.num_rows == NUM_ROWS
    again.save_indexes()
    assert json.loads(kept.read_text())["content_hash"] == again.files["rows.jsonl"]


def test_a_stale_index_is_ignored_and_replaced(tmp_path):
    path, cache_dir = write_lines(tmp_path / "rows.jsonl"), tmp_path / "index"
    manifest_of(path, cache_dir=cache_dir).save_indexes()
    write_lines(path, 400)
    again = manifest_of(path, cache_dir=cache_dir)
    assert again.num_rows == 400
    again.save_indexes()
    poison(path)
    assert manifest_of(path, cache_dir=cache_dir).num_rows == 400


def test_files_of_one_name_have_indexes_of_their_own(tmp_path):
    cache_dir = tmp_path / "index"
    for number, folder in enumerate(("a", "b")):
        write_lines(tmp_path / "data" / folder / "rows.jsonl", 5 + number)
    manifest_of(tmp_path / "data", cache_dir=cache_dir).save_indexes()
    assert len(list(cache_dir.iterdir())) == 2
    assert [chunk.num_rows for chunk in manifest_of(tmp_path / "data", cache_dir=cache_dir).chunks] == [5, 6]
