"""Readers of every kind of file, on files of every shape."""

import datetime
import gzip
import json

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from lift_ds.data.sources import Manifest, open_sources
from lift_ds.data.sources.json_files import JSONL_CHUNK_ROWS


def rows_of(count):
    return [{"prompt": f"question {number}", "response": f"ä {number}"} for number in range(count)]


def manifest_of(*paths):
    return Manifest(open_sources(list(map(str, paths)), 0, "train", 10))


def read_all(manifest):
    return [row for chunk in range(len(manifest.chunks)) for row in manifest.read(chunk)]


def lines_of(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def write_stream(path, table, batch_rows):
    with pa.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=batch_rows)


def write_zstd(path, content):
    with pa.CompressedOutputStream(pa.OSFile(str(path), "wb"), "zstd") as file:
        file.write(content)


def write(path, rows, batch_rows):
    """Writes rows as the file's ending says."""
    table = pa.Table.from_pylist(rows)
    writers = {
        "rows.parquet": lambda: pq.write_table(table, path, row_group_size=batch_rows),
        "rows.feather": lambda: feather.write_feather(table, str(path), chunksize=batch_rows),
        "rows.arrow": lambda: write_stream(path, table, batch_rows),
        "rows.jsonl": lambda: path.write_bytes(lines_of(rows)),
        "rows.json": lambda: path.write_text(json.dumps(rows)),
        "rows.jsonl.gz": lambda: path.write_bytes(gzip.compress(lines_of(rows))),
        "rows.jsonl.zst": lambda: write_zstd(path, lines_of(rows)),
        "rows.json.gz": lambda: path.write_bytes(gzip.compress(json.dumps(rows).encode())),
        "rows.json.zst": lambda: write_zstd(path, json.dumps(rows).encode()),
    }
    writers[path.name]()


KINDS = ("rows.parquet", "rows.feather", "rows.arrow", "rows.jsonl", "rows.json")
COMPRESSED = ("rows.jsonl.gz", "rows.jsonl.zst", "rows.json.gz", "rows.json.zst")


@pytest.mark.parametrize("name", [*KINDS, *COMPRESSED])
@pytest.mark.filterwarnings("ignore:.*compressed file")
@settings(max_examples=15, deadline=None)
@given(count=st.integers(1, 600), batch_rows=st.integers(1, 300))
def test_every_row_once_in_order(tmp_path_factory, name, count, batch_rows):
    path = tmp_path_factory.mktemp("rows") / name
    write(path, rows_of(count), batch_rows)
    manifest = manifest_of(path)
    rows = read_all(manifest)
    assert [row.values for row in rows] == rows_of(count)
    assert manifest.num_rows == count
    assert len({row.where for row in rows}) == count
    if "json" not in name:
        assert [chunk.num_rows for chunk in manifest.chunks] == [
            min(batch_rows, count - start) for start in range(0, count, batch_rows)
        ]
        assert rows[-1].where == f"{path}: row {count - 1}"
    if name in COMPRESSED:
        assert len(manifest.chunks) == 1


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 2 * JSONL_CHUNK_ROWS + 3),
    blank=st.dictionaries(st.integers(0, 2 * JSONL_CHUNK_ROWS), st.sampled_from(["", "  ", "\t"]), max_size=6),
    newline=st.sampled_from(["\n", "\r\n"]),
    ends_with_newline=st.booleans(),
    has_mark=st.booleans(),
)
def test_lines_of_every_shape(tmp_path_factory, count, blank, newline, ends_with_newline, has_mark):
    """Blank lines, CRLF, no newline at the end, a byte order mark: each row once, with its own line number."""
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    lines = [json.dumps(row) for row in rows_of(count)]
    for place in sorted(blank):
        lines.insert(min(place, len(lines)), blank[place])
    expected = [f"{path}:{number}" for number, line in enumerate(lines, start=1) if line.strip()]
    text = newline.join(lines) + newline * ends_with_newline
    path.write_bytes(b"\xef\xbb\xbf" * (has_mark and bool(lines[0].strip())) + text.encode())
    rows = read_all(manifest_of(path))
    assert [row.values for row in rows] == rows_of(count)
    assert [row.where for row in rows] == expected


@pytest.mark.parametrize("name", KINDS)
def test_empty_files_of_a_folder_are_left_out_and_said(tmp_path, name):
    write(tmp_path / name, rows_of(3), 2)
    (tmp_path / "0.jsonl").touch()
    with pytest.warns(UserWarning, match="0.jsonl is empty: no rows"):
        manifest = manifest_of(tmp_path)
    assert [row.values for row in read_all(manifest)] == rows_of(3)
    with pytest.raises(ValueError, match="0.jsonl is empty"):
        manifest_of(tmp_path / "0.jsonl")


def test_tables_without_rows_are_no_rows(tmp_path):
    empty = pa.table({"prompt": pa.array([], pa.string())})
    pq.write_table(empty, tmp_path / "a.parquet")
    write_stream(tmp_path / "b.arrow", empty, 10)
    with pytest.raises(ValueError, match=r"no rows in .*a.parquet, .*b.arrow"):
        manifest_of(tmp_path)


@pytest.mark.parametrize("name", COMPRESSED)
def test_compressed_files_are_said_once(tmp_path, name):
    write(tmp_path / name, rows_of(5), 5)
    with pytest.warns(UserWarning, match=f"{name}: a compressed file is one chunk") as caught:
        manifest = manifest_of(tmp_path / name)
        manifest.read(0)
        manifest.read(0)
    assert len(caught) == 1


@pytest.mark.filterwarnings("ignore:.*compressed file")
def test_gzip_members_are_one_file(tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(lines_of(rows_of(4)[:2])) + gzip.compress(lines_of(rows_of(4)[2:])))
    rows = read_all(manifest_of(path))
    assert [row.values for row in rows] == rows_of(4)
    assert rows[3].where == f"{path}:4"


@pytest.mark.parametrize("name", ["rows.parquet", "rows.feather", "rows.arrow", "rows.jsonl.gz", "rows.jsonl.zst"])
@pytest.mark.filterwarnings("ignore:.*compressed file")
def test_a_file_cut_short_is_named(tmp_path, name):
    path = tmp_path / name
    write(path, rows_of(600), 100)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    kind = {".parquet": "parquet", ".gz": "gzip", ".zst": "zstd"}.get(path.suffix, "arrow")
    with pytest.raises(ValueError, match=rf"{name}: cannot be read as {kind}: .* Is the file whole\?"):
        manifest_of(path)


def test_an_unreadable_row_group_is_named(tmp_path):
    path = tmp_path / "rows.parquet"
    write(path, rows_of(300), 100)
    start = pq.read_metadata(path).row_group(1).column(0).dictionary_page_offset
    content = bytearray(path.read_bytes())
    content[start : start + 40] = b"\xff" * 40
    path.write_bytes(content)
    manifest = manifest_of(path)  # the footer is whole
    assert len(manifest.read(0)) == len(manifest.read(2)) == 100
    with pytest.raises(ValueError, match=r"rows.parquet: row group 1: cannot be read as parquet"):
        manifest.read(1)


def test_broken_values_spoil_their_own_row_only(tmp_path):
    broken = pa.array([b"good", b"\xff\xfe", b"fine"]).view(pa.string())
    dates = pa.array([0, 1, 2**40], pa.int64()).view(pa.timestamp("s"))
    pq.write_table(pa.table({"text": broken, "date": dates}), tmp_path / "rows.parquet")
    first, second, third = manifest_of(tmp_path / "rows.parquet").read(0)
    assert first.values == {"text": "good", "date": datetime.datetime(1970, 1, 1)}
    assert "UnicodeDecodeError" in second.problem
    assert third.problem.startswith("a value cannot be read")
    lines = tmp_path / "rows.jsonl"
    lines.write_bytes(b'{"a": 1}\n{"a": "\xff"}\n' + b"[" * 100_000 + b'\n{"a": 2}\n')
    rows = manifest_of(lines).read(0)
    assert [row.values for row in rows] == [{"a": 1}, {}, {}, {"a": 2}]
    assert [row.problem is None for row in rows] == [True, False, False, True]


def test_elements_that_are_no_objects(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text('[{"a": 1}, 2]')
    good, bad = manifest_of(path).read(0)
    assert good.values == {"a": 1}
    assert (bad.where, bad.problem.split(",")[0]) == (f"{path}: element 1", "a int")


def test_folders_that_datasets_wrote(tmp_path):
    """Its stream format, without the JSON files beside it."""
    Dataset.from_list(rows_of(1500)).save_to_disk(tmp_path / "saved")
    manifest = manifest_of(tmp_path / "saved")
    assert [row.values for row in read_all(manifest)] == rows_of(1500)
    assert len(manifest.chunks) > 1


def test_streams_with_dictionaries_are_refused(tmp_path):
    table = pa.table({"a": pa.array(["x", "y", "x"]).dictionary_encode()})
    write_stream(tmp_path / "rows.arrow", table, 10)
    with pytest.raises(ValueError, match=r"rows.arrow: .* a dictionary in a stream; write the file as parquet"):
        manifest_of(tmp_path / "rows.arrow")


def test_folders_are_listed_with_all_folders_in_them(tmp_path):
    for number, name in enumerate(["a/1.jsonl", "a/b/2.jsonl", "c.parquet/3.jsonl", ".hidden/4.jsonl", ".5.jsonl"]):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(json.dumps({"n": number}) + "\n")
    assert [row.values["n"] for row in read_all(manifest_of(tmp_path))] == [0, 1, 2]
    assert [row.values["n"] for row in read_all(manifest_of(tmp_path / "**" / "[12].jsonl"))] == [0, 1]


def test_a_file_that_changes_while_it_is_used(tmp_path):
    path = tmp_path / "rows.jsonl"
    write(path, rows_of(10), 10)
    manifest = manifest_of(path)
    path.write_bytes(lines_of(rows_of(7)))
    with pytest.raises(ValueError, match="rows.jsonl: 7 rows where 10 were listed; the file was changed"):
        manifest.read(0)
