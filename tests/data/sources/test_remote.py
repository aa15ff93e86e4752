"""Remote files: a real HTTP server with faults that a test chooses, and fsspec's memory file system."""

import functools
import gzip
import http.server
import json
import re
import threading

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lift_ds.data.sources import Manifest, Retry, open_sources
from lift_ds.data.sources.filesystem import open_filesystem

FAST = Retry(tries=5, delay_seconds=0.001)
ROWS = [{"prompt": f"question {number}", "response": f"answer {number}"} for number in range(600)]


class Handler(http.server.SimpleHTTPRequestHandler):
    """Files with range requests; the server's attributes choose the faults and count the bytes."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.answer(with_body=False)

    def do_GET(self):
        self.answer(with_body=True)

    def answer(self, with_body):
        server = self.server
        server.requests.append((self.command, self.headers.get("Range")))
        if server.num_faults:
            server.num_faults -= 1
            return self.reply(server.fault, b"busy", {}, with_body)
        path = server.folder / self.path.partition("?")[0].lstrip("/")
        if not path.is_file():
            return self.reply(404, b"", {}, with_body)
        content = path.read_bytes()
        stat = path.stat()
        headers = {"ETag": f'"{stat.st_mtime_ns}-{stat.st_size}"', "Accept-Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
        if asked is None or not server.has_ranges:
            return self.reply(200, content, headers, with_body)
        part = content[int(asked[1]) : int(asked[2]) + 1]
        headers["Content-Range"] = f"bytes {asked[1]}-{asked[2]}/{len(content)}"
        self.reply(206, part, headers, with_body)

    def reply(self, status, content, headers, with_body):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if with_body:
            self.server.num_bytes += len(content)  # before the client can have them
            self.wfile.write(content)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(tmp_path):
    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(tmp_path)))
    served.folder, served.requests, served.num_bytes = tmp_path, [], 0
    served.num_faults, served.fault, served.has_ranges = 0, 503, True
    served.url = f"http://127.0.0.1:{served.server_address[1]}"
    thread = threading.Thread(target=served.serve_forever, daemon=True)
    thread.start()
    yield served
    served.shutdown()
    served.server_close()
    thread.join()


@pytest.fixture
def memory():
    filesystem = fsspec.filesystem("memory")
    yield filesystem
    filesystem.store.clear()
    filesystem.pseudo_dirs[:] = [""]


def manifest_of(*paths, cache_dir=None):
    return Manifest(open_sources(list(paths), 0, "train", 10, FAST), cache_dir)


def read_all(manifest):
    return [row.values for chunk in range(len(manifest.chunks)) for row in manifest.read(chunk)]


def write_lines(path, rows=ROWS):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_only_the_footer_and_the_row_group_are_fetched(server):
    rows = [{"text": f"{number} " + "x" * (number * 7919 % 4000)} for number in range(2000)]
    path = server.folder / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=200, compression="none")
    metadata = pq.read_metadata(path)
    manifest = manifest_of(f"{server.url}/rows.parquet")
    assert len(manifest.chunks) == 10
    assert server.num_bytes == metadata.serialized_size + 8 + 8  # the footer, and first its last 8 bytes
    before = server.num_bytes
    assert [row.values for row in manifest.read(3)] == rows[600:800]
    group = metadata.row_group(3).total_byte_size
    assert group <= server.num_bytes - before < group + 70_000  # Arrow reads 64 KiB to find the footer
    assert path.stat().st_size > 5 * group


def test_lines_are_read_by_ranges(server):
    write_lines(server.folder / "rows.jsonl")
    manifest = manifest_of(f"{server.url}/rows.jsonl?download=true")
    assert server.num_bytes == (server.folder / "rows.jsonl").stat().st_size
    assert read_all(manifest) == ROWS
    before = server.num_bytes
    manifest.read(1)
    assert server.num_bytes - before == manifest.chunks[1].num_bytes


@pytest.mark.filterwarnings("ignore:.*compressed file")
def test_other_kinds_over_http(server):
    table = pa.Table.from_pylist(ROWS)
    with pa.ipc.new_stream(str(server.folder / "rows.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=250)
    with pa.ipc.new_file(str(server.folder / "rows.feather"), table.schema) as writer:
        writer.write_table(table, max_chunksize=250)
    (server.folder / "rows.json.gz").write_bytes(gzip.compress(json.dumps(ROWS).encode()))
    for name, num_chunks in (("rows.arrow", 3), ("rows.feather", 3), ("rows.json.gz", 1)):
        manifest = manifest_of(f"{server.url}/{name}")
        assert read_all(manifest) == ROWS
        assert len(manifest.chunks) == num_chunks


@pytest.mark.parametrize("fault", [429, 500, 503])
def test_a_busy_server_is_asked_again(server, fault, caplog):
    write_lines(server.folder / "rows.jsonl")
    manifest = manifest_of(f"{server.url}/rows.jsonl")
    server.num_faults, server.fault = 4, fault
    assert [row.values for row in manifest.read(0)] == ROWS[:256]
    assert server.num_faults == 0
    waits = [re.search(r"try (\d) of 5 in (.*) s", record.getMessage()) for record in caplog.records]
    assert [int(found[1]) for found in waits] == [2, 3, 4, 5]


def test_a_server_that_stays_busy(server):
    write_lines(server.folder / "rows.jsonl")
    manifest = manifest_of(f"{server.url}/rows.jsonl")
    asked = len(server.requests)
    server.num_faults = 1000
    with pytest.raises(
        ConnectionError, match=r"rows.jsonl: no answer after 5 tries; .*503.* start again .training: --resume auto."
    ):
        manifest.read(0)
    assert len(server.requests) - asked == 5


def test_a_server_that_is_gone():
    with pytest.raises(ConnectionError, match=r"127.0.0.1:9/rows.jsonl: no answer after 5 tries"):
        manifest_of("http://127.0.0.1:9/rows.jsonl")


def test_what_is_refused_is_not_asked_again(server):
    write_lines(server.folder / "rows.jsonl")
    manifest = manifest_of(f"{server.url}/rows.jsonl")
    asked = len(server.requests)
    server.num_faults, server.fault = 1000, 403
    with pytest.raises(ValueError, match=r"rows.jsonl: .*403.* Check the address and your credentials"):
        manifest.read(0)
    assert len(server.requests) - asked == 1


def test_missing_and_unknown_remote_files(server):
    with pytest.raises(ValueError, match="nothing.jsonl': no such file"):
        manifest_of(f"{server.url}/nothing.jsonl")
    with pytest.raises(ValueError, match="unknown ending"):
        (server.folder / "notes.txt").write_text("notes")
        manifest_of(f"{server.url}/notes.txt")
    with pytest.raises(ValueError, match=r"nowhere:// cannot be opened"):
        open_filesystem("nowhere://bucket/rows.jsonl")


def test_a_server_without_ranges(server):
    write_lines(server.folder / "rows.jsonl")
    manifest = manifest_of(f"{server.url}/rows.jsonl")
    server.has_ranges = False
    with pytest.raises(ValueError, match=r"rows.jsonl: the server sends whole files only \(no range requests\)"):
        manifest.read(1)


def test_a_remote_file_that_is_cut_short_is_no_lost_connection(server):
    pq.write_table(pa.Table.from_pylist(ROWS), server.folder / "rows.parquet")
    content = (server.folder / "rows.parquet").read_bytes()
    (server.folder / "rows.parquet").write_bytes(content[:-100])
    with pytest.raises(ValueError, match="rows.parquet: cannot be read as parquet"):
        manifest_of(f"{server.url}/rows.parquet")


class Buffered(fsspec.AbstractFileSystem):
    """A file system that opens files to read a range, with fsspec's own read-ahead, as hf:// is."""

    protocol = "buffered"
    content = b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)
    fetched = []

    def info(self, path, **kwargs):
        return {"name": path, "size": len(self.content), "type": "file", "blob_id": "1"}

    def _open(self, path, mode="rb", **kwargs):
        return BufferedFile(self, path, mode, size=len(self.content), **kwargs)


class BufferedFile(fsspec.spec.AbstractBufferedFile):
    def _fetch_range(self, start, end):
        self.fs.fetched.append((start, end))
        return self.fs.content[start:end]


def test_nothing_is_read_ahead():
    fsspec.register_implementation("buffered", Buffered, clobber=True)
    manifest = manifest_of("buffered://rows.jsonl")
    Buffered.fetched.clear()
    assert [row.values for row in manifest.read(1)] == ROWS[256:512]
    chunk = manifest.chunks[1]
    assert Buffered.fetched == [(chunk.start, chunk.start + chunk.num_bytes)]


def test_folders_and_globs_of_a_remote_file_system(memory):
    for number, name in enumerate(["/d/a.jsonl", "/d/e/b.jsonl", "/d/.cache/c.jsonl", "/d/notes.md"]):
        memory.pipe(name, json.dumps({"n": number}).encode())
    assert read_all(manifest_of("memory://d")) == [{"n": 0}, {"n": 1}]
    assert read_all(manifest_of("memory://d/*/b.jsonl")) == [{"n": 1}]
    with pytest.raises(ValueError, match=r"no such file, or no \.jsonl"):
        manifest_of("memory://d/*.parquet")
    memory.pipe("/d/empty.jsonl", b"")
    with pytest.raises(ValueError, match="empty.jsonl is empty"):
        manifest_of("memory://d/empty.jsonl")
    with pytest.warns(UserWarning, match="empty.jsonl is empty"):
        assert manifest_of("memory://d").num_rows == 2


def test_the_index_of_a_remote_file_is_kept_by_its_etag(server, tmp_path):
    path, cache_dir = server.folder / "rows.jsonl", tmp_path / "index"
    write_lines(path)
    first = manifest_of(f"{server.url}/rows.jsonl", cache_dir=cache_dir)
    first.save_indexes()
    before = server.num_bytes
    again = manifest_of(f"{server.url}/rows.jsonl", cache_dir=cache_dir)
    assert server.num_bytes == before  # nothing but its head was asked for
    assert again.digest == first.digest
    path.write_text(path.read_text().replace('answer 7"', 'answer 8"'))
    assert manifest_of(f"{server.url}/rows.jsonl", cache_dir=cache_dir).digest != first.digest
