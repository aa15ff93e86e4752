"""Settings that people write: no key twice, every byte a letter, each problem with its place."""

import json
import sys

import pytest
import yaml

from lift_ds.evaluation.asking.protocol import load_protocol
from lift_ds.evaluation.compare import read_results
from lift_ds.models.family import read_raw_config
from lift_ds.models.vocabulary import read_tokenizer_config
from lift_ds.storage.frozen_base import read_base
from lift_ds.storage.manifest import read_manifest
from lift_ds.storage.run_record import read_run
from lift_ds.text_files import BadKeyError, RepeatedKeyError, load_json, load_yaml, read_text
from tests.conftest import clean_environment, run


def test_keys_twice_in_json():
    with pytest.raises(BadKeyError, match="the key 'a' stands twice .* at line 1 character 2 and line 3 character 2;"):
        load_json('{"a": 1,\n "b": {"a": 2},\n "a": 1}')


def test_other_json_is_as_ever():
    text = '{"a": [{"a": 1}, {"a": 2}], "b": {"a": {"b": null}}, "c": "a\\"b"}'
    assert load_json(text) == json.loads(text)
    with pytest.raises(ValueError, match="line 1 column 6"):
        load_json('{"a" 1}')


def test_keys_twice_in_yaml():
    with pytest.raises(RepeatedKeyError, match="'b' in line 2 and again in line 4, 'a' in line 1 and again in line 5"):
        load_yaml("a:\n  b: 1\n  c: 2\n  b: 1\na: {}\n")
    with pytest.raises(RepeatedKeyError, match="'a' in line 1 and again in line 1"):
        load_yaml("{a: 1, a: 2}")


def test_a_yaml_merge_is_no_repetition():
    """The same anchor, merged in two places and overridden in one."""
    text = "base: &base {a: 1, b: 2}\nfirst: {<<: *base, a: 3}\nsecond:\n  <<: *base\n  inner: {<<: *base, b: 4}\n"
    assert load_yaml(text) == yaml.safe_load(text)
    assert load_yaml(text)["first"] == {"a": 3, "b": 2}


def test_encodings(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"\xef\xbb\xbfoptim: {}\r\n")  # a byte order mark of UTF-8, and Windows' line ends
    assert load_yaml(read_text(path)) == {"optim": {}}
    path.write_bytes("a: 1\n# für".encode("cp1252"))
    with pytest.raises(
        ValueError, match=r"^line 2: byte 9 of the file \(0xfc\) is no UTF-8; .* iconv -f CP1252 -t UTF-8$"
    ):
        read_text(path)
    path.write_text("a: 1\n", encoding="utf-16")
    with pytest.raises(
        ValueError, match=r"^line 1: byte 1 of the file \(0xff\) is no UTF-8; .* iconv -f UTF-16 -t UTF-8$"
    ):
        read_text(path)


def test_a_locale_that_is_not_utf_8():
    """Names that it cannot spell are refused with the remedy; what is printed never fails."""
    code = "from lift_ds.text_files import check_locale; check_locale(); print('\\u2503 \\u00e9')"
    ascii_only = clean_environment(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert run([sys.executable, "-c", code, "plain"], env=ascii_only).stdout == "\\u2503 \\xe9\n"
    done = run([sys.executable, "-c", code, "für"], env=ascii_only, check=False)
    assert "this locale's encoding of file names is ascii; set PYTHONUTF8=1" in done.stdout
    assert run([sys.executable, "-c", code, "für"], env=clean_environment(LC_ALL="C")).stdout == "\u2503 é\n"


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("run.json", read_run),
        ("config.json", read_raw_config),
        ("tokenizer_config.json", read_tokenizer_config),
        ("manifest.json", read_manifest),
        ("base.json", read_base),
        ("results.json", read_results),
        ("mine.yaml", lambda folder: load_protocol(str(folder / "mine.yaml"))),
    ],
)
def test_every_file_that_people_may_edit(tmp_path, name, read):
    """A key twice, and another encoding, are errors that name the file and the place."""
    for content, message in (
        (b'{"a": 1,\n "a": 2}', "'a' .*line 1 .*line 2"),
        (b'{"a": "f\xfcr"}', "line 1: byte 9 of the file .0xfc. is no UTF-8"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"(?s){name}.*{message}"):
            read(tmp_path)
