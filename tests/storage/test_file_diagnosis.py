"""Pointers, pages and unfinished downloads are recognised by name, whatever they were saved as."""

import gzip
from pathlib import Path

import pytest

from lift_ds.data.sources import Manifest, open_sources
from lift_ds.storage.file_diagnosis import diagnose, explain

CASE = Path(__file__).parents[1] / "data" / "cases" / "lfs_pointer"
POINTER = (CASE / "rows.jsonl").read_bytes()
PAGE = b"\n<!DOCTYPE html>\n<html><head><title>404</title></head></html>\n"
GZIP = gzip.compress(b"{}", mtime=0)  # without the time: names of tests are the same in every process
NAMES = ("jsonl", "json", "parquet", "arrow", "feather", "jsonl.gz", "jsonl.zst", "json.gz", "json.zst")


@pytest.mark.parametrize("ending", NAMES)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (POINTER, "is a git-lfs pointer, 146,946,961 bytes are missing; run `git lfs pull`"),
        (PAGE, "is an HTML or XML page, as servers send it in place of a file; download it again"),
        (b"Entry not found", "is a server's refusal .'Entry not found'.; download it again"),
        (bytes(2000), "begins with 512 zero bytes, as an interrupted download"),
        (b"", "is empty"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*compressed file")
def test_data_files(tmp_path, ending, content, message):
    path = tmp_path / f"rows.{ending}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"rows\.{ending}.* {message}"):
        Manifest(open_sources([str(path)], 0, "train", 1))


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_the_case(name):
    with pytest.raises(ValueError, match="146,946,961 bytes are missing"):
        Manifest(open_sources([str(CASE / name)], 0, "train", 1))


@pytest.mark.parametrize(
    ("name", "head", "found"),
    [
        ("rows.jsonl", GZIP, "is compressed with gzip; decompress it, or give its name the ending .gz"),
        ("rows.jsonl.gz", GZIP, None),
        ("rows.jsonl", b"PAR1\x15", "is a parquet file; name it .parquet"),
        ("https://example.org/rows.parquet?download=1", b"PAR1\x15", None),
        ("model.safetensors", b"PK\x03\x04", "is a zip archive; unpack it"),
        ("pytorch_model.bin", b"PK\x03\x04", None),
        ("rows.jsonl", b'{"prompt": "<html>"}', None),
        ("rows.jsonl", b'{"prompt"', None),
        ("tokenizer.json", b"Not Found.", "is a server's refusal ('Not Found.'); download it again, and look at the "
         "address and your access"),
    ],
)  # fmt: skip
def test_first_bytes(name, head, found):
    assert diagnose(head, name) == found


def test_what_is_not_there_is_not_explained(tmp_path):
    assert explain(tmp_path / "missing") == ""
